"""Many runs, or measurements of one: verify, measure, study, textbook, bench."""
