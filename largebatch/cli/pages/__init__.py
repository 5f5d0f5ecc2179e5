"""Pages of help, made of the files of conf/ and their comments."""
