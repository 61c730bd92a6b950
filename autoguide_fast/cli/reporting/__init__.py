"""What `autoguide-fast report` is made of: parts of each kind of input, charts, and the page."""
