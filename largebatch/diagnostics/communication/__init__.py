"""What communication costs on the ranks of a job: all-reduces by themselves, and steps with and without them."""
