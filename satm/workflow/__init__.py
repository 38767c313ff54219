"""The workflow around campaigns: their jobs, the Snakemake interface, the schema, SLURM, recovery."""
