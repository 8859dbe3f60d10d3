"""One inspection on one printable page."""
