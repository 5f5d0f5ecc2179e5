"""Rows of metrics in files, read one by one."""
