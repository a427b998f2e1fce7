"""CaSync: compressed gradient synchronization, as schedules of five primitives over ranks."""
