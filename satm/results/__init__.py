"""Results of runs: tidy rows as parquet with the run's circumstances, and synthetic sets as safetensors."""
