"""Tables, plots, pictures and HTML pages of evaluations, comparisons and predictions."""
