"""Training: from the shards on disk to a run's checkpoints and numbers. In the order in which a module may import another:

1. timing.py           where a step's time goes on this rank, and whom the ranks wait for
   engine/             the ranks and DeepSpeed around the dense core
   step/               one step, from the batch to the updated weights
2. evaluations.py      a result of the exact evaluator, as a line of evaluations.jsonl, and the best of them
   run_folder.py       the names of all files of a run
   checkpoints/        checkpoints: written behind the steps, read, kept, copied elsewhere
3. run_state.py        who trains in a run directory, and how the last training there ended
   same_everywhere.py  whether all ranks have the same program, settings and data
   resume.py           what a run goes on from
   stopping.py         why and when a training is to stop before its end
4. run.py              all of it built on this rank, resumed, and saved
   log/                what a training tells while it runs
   dry_run.py          what a training will be, before it begins
   loop.py             a training from its start to its end, in the order in which things happen

A worked example: `deepspeed --num_gpus 2 launch/train.py --config configs/irnn_news.json` calls `loop.train` on two ranks. Each builds a
`Run` (run.py): its half of the lanes, its rows of the tables (row r on rank r % 2), the whole core under DeepSpeed. A step takes the next
20 tokens of each of its lanes, fetches the rows of the distinct words and of the samples from whichever rank has them, and makes one
update of the core on both ranks and of those rows on their owners, or none anywhere where some rank's gradient is not finite. Every so
many steps a checkpoint is written behind the steps. The same command again goes on from the newest one, with any number of ranks.
"""
