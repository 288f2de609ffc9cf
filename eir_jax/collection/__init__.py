"""A collection of pictures: embedded, searched, looked through for duplicates."""
