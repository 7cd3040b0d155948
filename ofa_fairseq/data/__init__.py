"""From a row of a TSV file to a batch: reading, pictures, text, examples and their collation."""
