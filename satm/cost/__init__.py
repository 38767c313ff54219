"""What a campaign takes: forecast, spent so far, and the calibration of a machine."""
