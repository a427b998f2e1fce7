"""SeCoPa: decides for each gradient whether compressing pays, and into how many partitions to cut it."""
