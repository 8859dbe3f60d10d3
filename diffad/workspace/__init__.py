"""What outlives the process: inspections with their pictures, what people said, what it adds up to."""
