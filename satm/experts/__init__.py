"""Networks trained on real images, and the store of their trajectories."""

from satm.experts.difficulty import Difficulty, expert_difficulty, load_difficulty, mean_difficulty, save_difficulty
from satm.experts.store import (
    TrajectoryStore,
    chance_level,
    describe_near_chance,
    describe_shard,
    read_shards,
    shard_identity,
    shard_name,
    write_manifest,
    write_shard,
)
from satm.experts.train import Snapshot, train_expert
