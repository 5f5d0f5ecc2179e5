"""The textbook chapter on batch size as one page: widgets from closed forms, beside what runs have measured."""
