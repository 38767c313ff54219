"""What a campaign needs: its jobs, the campaigns that Snakemake opens, the schema, SLURM, recovery."""
