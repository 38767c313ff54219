"""Cost of a campaign: forecast, cost so far, and the calibration of a machine."""
