"""The book's machinery: what notebooks import, what runs them, what builds the pages."""
