"""Ways through the rows of a table: by its pages, by an index, or whichever is there."""
