"""What people read of an evaluation, a comparison or a prediction: tables, plots, montages and HTML pages."""
