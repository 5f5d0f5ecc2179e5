"""What the files of conf/ say: keys, values and comments, read without Hydra, in a tenth of a second."""
