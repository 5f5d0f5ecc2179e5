"""What on this machine would stop a run or slow it down, before a run finds out."""
