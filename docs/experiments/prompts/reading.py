"""What one may read from the tables and what not: written by hand, after the results."""

READING = ""
