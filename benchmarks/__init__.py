"""Published streams and their protocols, the embedded pocket benchmark, and measurements of speed."""
