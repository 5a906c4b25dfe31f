"""Pages that open in a browser with no network: their style, plots and small images, and the data report."""
