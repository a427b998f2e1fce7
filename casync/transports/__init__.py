"""Transports: one file each, found by name (`base.py` has the contract)."""
