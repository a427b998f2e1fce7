"""Engines of all-reduces that are not ours: one file each, found by name (`base.py` has the contract)."""
