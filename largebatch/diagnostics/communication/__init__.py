"""Cost of communication between the ranks of a job: all-reduces alone, and steps with and without them."""
