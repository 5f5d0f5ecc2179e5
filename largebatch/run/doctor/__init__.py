"""Finds problems of this machine that would stop a run or slow it down."""
