"""What the commands do: trials of a codec, measurements, formatting, skeletons; `compll.cli` prints it."""
