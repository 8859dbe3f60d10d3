"""Made parts with exact masks of their defects."""
