"""Tables made from the parquet files of other stages."""
