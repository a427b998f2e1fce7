"""The shipped algorithms: one `.pse` file each, nothing else to register."""
