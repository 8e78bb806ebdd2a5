"""Every diagnostic code: its title, whether it stops the build, and the long explanation.

`higgsc explain HC101` prints the explanation. Codes are grouped by the phase that finds the problem: HC0xx
reading the file, HC1xx the schema, HC2xx composition, HC3xx topology and batch, HC4xx environment, HC5xx model
and LoRA, HC6xx the cluster. A code, once published, keeps its meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Code:
    title: str
    explanation: str
    severity: Severity = "error"


CODES: dict[str, Code] = {
    "HC001": Code(
        "a spec cannot be read",
        "The file does not exist, is a directory or a device, is larger than 1 MiB, or is not UTF-8. Paths given to\n"
        "`extends` are relative to the file that contains them.",
    ),
    "HC002": Code(
        "not valid YAML",
        "The parser gave up at the marked place. The usual causes are a tab used for indentation, a missing space\n"
        "after a colon, a value that starts with `@`, `%` or `*` and needs quotes, and an unclosed quote or bracket.",
    ),
    "HC003": Code(
        "a spec must be a mapping",
        "The top level of a spec is a mapping: `key: value` lines. An empty file, a list or a single word is not\n"
        "a spec.",
    ),
    "HC004": Code(
        "a key is given twice",
        "YAML forbids two equal keys in one mapping, yet most parsers keep the last one and say nothing. One of the\n"
        "two values would be lost, so this is an error.",
    ),
    "HC005": Code(
        "a key that a spec cannot have",
        "Keys are plain words. The merge key `<<` of YAML 1.1 is not part of YAML 1.2; use `extends:` to build on\n"
        "another file. Lists and mappings cannot be keys.",
    ),
    "HC006": Code(
        "the spec unfolds too far",
        "Anchors and aliases are allowed, but what they unfold to is limited to 20,000 values and 64 levels, so that\n"
        "a small file cannot fill the memory. For the same reason a spec extends no more than 100 files.",
    ),
    "HC007": Code(
        "a tag in a spec",
        "YAML can give a value a type with a tag, such as `!!str 8`. A spec needs none: quotes make a string, and the\n"
        "schema knows the type of every key. A string that starts with `!` needs quotes, or it is read as a tag.",
    ),
    "HC101": Code(
        "unknown key",
        "The schema has no such key at this place. A misspelt key would otherwise be ignored, and the run would use\n"
        "the default in silence.",
    ),
    "HC102": Code("a required key is missing", "The mapping at the marked place needs this key; it has no default."),
    "HC103": Code(
        "a value of the wrong type",
        'The value cannot be used for this key. Values are never converted from one type to another: `"8"` is a\n'
        "string, `8` a number. Scalars follow YAML 1.2: `no` and `10:00:00` are strings, `1e-4` is a number.",
    ),
    "HC104": Code("a value outside the allowed set", "The key takes one of a few words. The message lists them."),
    "HC105": Code(
        "a number out of range", "The number is below the smallest or above the largest that makes sense here."
    ),
    "HC106": Code(
        "a value that cannot be understood",
        "The value has a form of its own (a hardware shape, a name, a time limit, a path) and does not follow it.",
    ),
    "HC107": Code(
        "a key of another tool",
        "The key belongs to another trainer or launcher. The help says what the same thing is called here. No key is\n"
        "accepted under two names, so that a spec reads the same for everybody.",
    ),
    "HC201": Code(
        "`extends` goes in a circle",
        "A spec extends a file that, directly or through others, extends the spec. The chain is printed.",
    ),
    "HC202": Code(
        "an override that cannot be applied",
        "`--set` takes `key.path=value`, with the value in YAML: `--set lora.rank=16`, `--set lora.heads=[audio]`. It\n"
        "may be given several times; the last one wins.",
    ),
    "HC203": Code(
        "a sweep that cannot be unfolded",
        "`sweep` maps keys to lists of values. Several keys give the product of their lists. Keys joined by commas\n"
        "change together, and take lists of lists: `lora.rank, lora.alpha: [[16, 32], [64, 128]]`.",
    ),
    "HC204": Code(
        "no such site",
        "A site is a file in `specs/sites/` that holds what belongs to a cluster. `site: NAME` in the spec, or \n"
        "`--site NAME` on the command line, chooses it.",
    ),
    "HC301": Code(
        "the mesh does not fit the hardware",
        "`replicate` x `shard` x `tensor` has to equal the number of GPUs, nodes x GPUs per node. `replicate: auto`\n"
        "takes what `shard` and `tensor` leave over. `tensor` also has to divide the model's attention heads, its\n"
        "key-value heads and the width of its feed-forward networks: each GPU of a tensor group takes a share of them.",
    ),
    "HC302": Code(
        "unknown GPU",
        "The compiler knows the memory and the arithmetic of a fixed set of GPUs (`higgsc/catalog/gpus.py`). A shape\n"
        "without a GPU type, such as `2x8`, is allowed.",
    ),
    "HC303": Code(
        "a machine with unlikely many GPUs",
        "`16xH200` is one machine with sixteen GPUs. Machines with more than eight are rare; two machines with eight\n"
        "each are `2x8xH200`. On a machine that large the warning can be passed over.",
        "warning",
    ),
    "HC304": Code(
        "a large model on a CPU",
        "The released model has billions of parameters; a step that takes a GPU a second takes a CPU many minutes.\n"
        "To try a spec out on a CPU there is `builtin:tiny`, as `model.base` and `model.audio_tokenizer`.",
        "warning",
    ),
    "HC305": Code(
        "a tensor group that leaves its machine",
        "The GPUs of a tensor group exchange activations several times in every layer. Between machines that takes\n"
        "longer than the computation, so `tensor` has to divide the number of GPUs per machine.",
    ),
    "HC306": Code(
        "sequence parallelism without a tensor group",
        "`sequence: true` divides the activations between the blocks of a layer among the GPUs of a tensor group.\n"
        "With `tensor: 1` a group is one GPU, and there is nothing to divide.",
    ),
    "HC307": Code(
        "what cannot be combined with a tensor group",
        "DoRA scales whole rows of a matrix, of which each GPU of a tensor group holds a part; and the layers that\n"
        "`training.compile` compiles are not those that a tensor group runs. A quantised base is not divided either:\n"
        "scales and blocks go along a matrix's rows, which `o_proj` and `down_proj` divide. All need `tensor: 1`.",
    ),
    "HC311": Code(
        "the global batch does not divide",
        "An optimizer step sees the samples or tokens of `global_batch`. They are shared evenly by the data-parallel\n"
        "ranks (replicate x shard; with `tensor` above 1 each is a group of GPUs) and processed in micro-batches of\n"
        "`micro_batch`, so the product of the two has to divide the global batch. Nothing is rounded.",
    ),
    "HC312": Code(
        "batches are counted in samples or in tokens",
        "`global_batch` is either `{samples: N}` or `{tokens: N}`, and `micro_batch` is counted the same way. In\n"
        "samples a step sees as many samples as were asked for; in tokens rows are full, and none waits for a longer\n"
        "one. A spec that extends another one and counts the other way takes the inherited size back: `samples: null`.",
    ),
    "HC313": Code(
        "rows may be too short for the longest samples",
        "With batches in tokens, a sample lies in one row, and a row has `micro_batch.tokens` tokens. A sample of the\n"
        "longest clips that `data.limits.max_seconds` lets in, reference and target, is longer, by a guess at its\n"
        "text. The training looks at the real samples before its first step, and refuses to start if one is too long.",
        "warning",
    ),
    "HC320": Code(
        "the training has no length, or two",
        "The length is given either in `epochs` or in `steps`. A spec that extends another one and gives the other\n"
        "kind of length has to take the inherited one back: `epochs: null`.",
    ),
    "HC321": Code(
        "the schedule does not fit the training",
        "With the length given in steps, the warm-up has to be shorter than the training, and a checkpoint interval\n"
        "longer than the training is never reached. Only checkpoints that are written can be kept, so\n"
        "`checkpoint.keep_every` is a multiple of `checkpoint.every_steps`.",
    ),
    "HC322": Code(
        "nothing is held out",
        "Evaluation speaks and scores held-out samples, and the best checkpoint is the one with the lowest loss on\n"
        "them. With `data.validation.fraction: 0` there are none.",
    ),
    "HC323": Code(
        "a step without its predecessor",
        "Evaluation speaks with the merged model, so `evaluate` needs `merge`.",
    ),
    "HC324": Code(
        "an unlikely learning rate",
        "LoRA adapters are trained with peak learning rates of about 1e-5 to 1e-3. From 0.1 on, AdamW moves every\n"
        "weight by a tenth of its scale and more with each step, and the loss runs away; below 1e-7 nothing is\n"
        "learned. Usually the minus of an exponent was lost, or a digit is too many.",
        "warning",
    ),
    "HC325": Code(
        "limits that no recording passes",
        "`data.limits.min_seconds` has to be below `data.limits.max_seconds`; otherwise every sample is rejected.",
    ),
    "HC326": Code(
        "the training takes longer than one job may",
        "A training whose length is given in steps, on a GPU that is named, has a predicted time (`higgsc plan`). It\n"
        "is a guess: it assumes a share of the GPU's peak and a length of the clips, which the message names.\n"
        "`site.time_limit`, 24 hours if not given, is the longest time of one job. Where the prediction is longer,\n"
        "the training needs several jobs one after the other, or a higher limit, or more GPUs.",
        "warning",
    ),
    "HC331": Code(
        "the training does not fit into the GPU's memory",
        "The memory is computed from the shapes: weights, adapter, optimizer, activations, logits (`higgsc plan`\n"
        "lists them, `higgsc plan --verify` traces the trainer to check them). It is counted for a micro-batch of the\n"
        "longest samples that `data.limits.max_seconds` lets in, because one such batch ends the run. Where the\n"
        "spec does not say what layers keep (`training.activation_checkpointing`), they already keep the least. A\n"
        "tenth of the GPU stays free for what is not computed. Without a GPU type in `hardware` nothing is checked.",
    ),
    "HC340": Code(
        "two environments for the steps",
        "The steps run in one Python: that of a virtual environment (`site.venv`), of a conda environment\n"
        "(`site.conda`) or of a container (`site.container`). Modules can be loaded beside any of them.",
    ),
    "HC341": Code(
        "a job without time to work",
        "`site.signal_lead` seconds before the time limit, training is told to save and stop. Slurm may give the\n"
        "warning up to 60 s early, and starting takes a while too, so the limit has to be two minutes longer.",
    ),
    "HC342": Code(
        "a path with shell syntax",
        "Values reach the scripts in quotes: `~`, `$HOME` and the like would name a folder of exactly that name.\n"
        "Slurm itself takes a backslash in the name of a log file for an escape.",
    ),
    "HC351": Code(
        "Kubernetes does not know where the secrets are",
        "A pod does not inherit the environment of whoever submits it. `site.kubernetes.secret_name` names a Secret\n"
        "of the namespace, with the names in `secrets` as its keys; the manifests refer to it and hold no values. A\n"
        "file of lines `HF_TOKEN=...` makes one: `kubectl create secret generic NAME --from-env-file=FILE`.",
    ),
    "HC352": Code(
        "a folder outside the claim",
        "In a pod only the claim outlasts the container, and it is mounted at `site.kubernetes.mount`. A run's folder\n"
        "anywhere else would be gone with the first restart. Give it relative to the project root.",
    ),
    "HC361": Code(
        "a loss of nothing",
        "The loss is `text` x text loss + `audio` x audio loss. With both weights 0 every gradient is 0, and the\n"
        "training would run to its end and learn nothing.",
    ),
    "HC362": Code(
        "the audio loss is switched off",
        "With `loss.audio: 0` only the text loss is trained. The voice is in the audio codes, so nothing of it is\n"
        "learned; as an experiment it is legal.",
        "warning",
    ),
    "HC363": Code(
        "an unlikely number",
        "The number is legal, but so far from what is usual that it is hardly meant: alpha / rank, which scales the\n"
        "adapter, a weight decay above 1, trainings and warm-ups that never end, fewer CPU cores than GPUs. Whoever\n"
        "means it can pass the warning over.",
        "warning",
    ),
    "HC364": Code(
        "the same samples twice",
        "`data.train` names one file two times, so that its samples would count twice.",
    ),
    "HC365": Code(
        "weights that do not fit the codebooks",
        "`loss.codebooks` has a weight for each of the eight codebooks, the coarsest first. Only their ratios count:\n"
        "the audio loss is the weighted mean of the codebooks' losses. At least one has to be above 0.",
    ),
    "HC366": Code(
        "a schedule that cannot be followed",
        "`loss.schedule` has points in the order of their steps, with factors on the weights of the loss; between two\n"
        "points the factor is linear. The codebooks have eight factors at each point, of which one is above 0. What\n"
        "is scheduled has to be switched on.",
    ),
    "HC367": Code(
        "a voice without others to tell it from",
        "The contrastive loss compares the samples that all ranks have in one micro-batch: `micro_batch.samples`\n"
        "times the data-parallel ranks. One sample has nothing to be compared with. With batches in tokens, ranks\n"
        "have different numbers of samples, which this loss does not compare.",
    ),
    "HC411": Code(
        "a file of the spec is not here",
        "Data and local models are looked for when a spec is checked or built, because a misspelt path would\n"
        "otherwise be found by the prepare step, after an hour in the queue. Relative paths start at the project\n"
        "root, the folder above `specs/`. The build does not depend on it: where the data lie on another machine,\n"
        "it is a warning. `higgsc run`, which starts work, refuses.",
        "warning",
    ),
    "HC412": Code(
        "the base model is not pinned",
        "A hub repository can change under a running experiment; this one already did once, when its file format\n"
        "was replaced. Put the commit into `model.revision` so that a rerun starts from the same weights. A branch\n"
        "such as `main`, or a tag, is no commit: it can be moved. The same holds of `model.whisper.revision`.",
        "warning",
    ),
    "HC413": Code(
        "a revision without effect",
        "`model.revision` is the commit of a hub repository. The base is a folder or built in, so nothing is pinned\n"
        "by it; often it was inherited together with another base. `revision: null` takes it back.",
        "warning",
    ),
    "HC414": Code(
        "a package is not here",
        "`tracking.to` names a tool whose package is no part of higgsc, `evaluate.recogniser` needs one to count\n"
        "errors, or `merge.quantize` one to quantise: `pip install wandb`, `trackio`, `jiwer` or `torchao` in the\n"
        "environment of the steps. The step looks for it before it loads anything, and refuses. Here it is a warning,\n"
        "because the steps may run in another environment.",
        "warning",
    ),
    "HC421": Code(
        "a secret is written into the spec",
        "Specs are committed and copied into builds, so a token in one is a token given away. `secrets` takes names\n"
        "of environment variables, which have to be set where jobs run. Whatever is shaped like a token (`hf_...`,\n"
        "`sk-...`, `wandb_v1_...`, `ghp_...`, forty hex digits where a secret may stand), or stands behind a key such\n"
        "as `api_key`, is refused at any place, and masked in every message.",
    ),
    "HC422": Code(
        "W&B without a key",
        "W&B takes figures from whoever has a key. Name the variable that holds it, `secrets: [WANDB_API_KEY]`, or\n"
        "run `wandb login` once on the cluster, which keeps it in `~/.netrc`: then the warning can be passed over.\n"
        "With `tracking.offline: true` no key is needed; `wandb sync` sends the figures later. Without any of the\n"
        "three the train step refuses to start.",
        "warning",
    ),
    "HC423": Code(
        "a tracking option without effect",
        "`tracking.project` is for W&B and trackio, `tracking.entity` and `tracking.offline` are for W&B. The spec\n"
        "tracks with neither: often `to` was inherited, or overridden.",
        "warning",
    ),
    "HC424": Code(
        "a model that measures speech, and no speech",
        "`evaluate.recogniser` and `evaluate.similarity` listen to what the models speak. With `samples: 0` they\n"
        "speak nothing; the losses are measured all the same.",
        "warning",
    ),
    "HC501": Code(
        "a LoRA target matches no module",
        "Targets are dotted suffixes of module paths (`self_attn.q_proj`, `audio_mlp.*`), checked against the module\n"
        "tree of the model family. Trainers that skip unmatched targets train less than was asked for and say\n"
        "nothing.",
    ),
    "HC502": Code(
        "a LoRA target matches a module that is not linear",
        "LoRA adds its low-rank pair to linear layers. Embeddings and norms cannot be targets.",
    ),
    "HC504": Code(
        "a head in both lists",
        "An output head gets an adapter (`lora.heads`) or is trained whole (`lora.full_heads`). PEFT would take both\n"
        "and train the whole one alone.",
    ),
    "HC505": Code(
        "a pattern that decides nothing",
        "`lora.rank_pattern` and `lora.alpha_pattern` give some of the adapted modules values of their own. Patterns\n"
        "are written as in `lora.targets`; of those that match a module the first one counts. One that matches no\n"
        "adapted module, or only modules that an earlier one decides, would be a wish without effect.",
    ),
    "HC506": Code(
        "a merge without an adapter",
        "`lora: null` trains the whole model. Its checkpoints are folders that transformers loads, so there is\n"
        "nothing to merge, and no merge step: `evaluate` reads the best checkpoint, and `higgsc generate --model`\n"
        "takes the folder of any.",
    ),
    "HC507": Code(
        "a quantised base below what needs it whole",
        "`model.quantize` rounds frozen matrices to eight or four bits. Where the whole model is trained, none are\n"
        "frozen; and DoRA scales each row by its length, which is that of the base as it was.",
    ),
    "HC508": Code(
        "fp8 without hardware that multiplies it",
        "With `model.quantize: fp8` the products are those of 8-bit floats, by tensor cores of compute capability 8.9\n"
        "or later, and their results are bf16. `int8` is as small and runs everywhere: each matrix is made whole for\n"
        "its products. On a CPU (`1xCPU`) fp8 is computed as well, slowly, to try a spec out.",
    ),
    "HC511": Code(
        "a Whisper without an adapter",
        "What a Whisper hears goes through a projector, saved beside the adapter. With `lora: null` checkpoints are\n"
        "folders that transformers loads, and it would load them without the projector: another model.",
    ),
    "HC512": Code(
        "a merge of what cannot be merged",
        "With `model.whisper`, what a Whisper hears of the reference is added to the model's inputs. A merged model\n"
        "is one of the base's kind, and has no such inputs. So there is no merge step: `evaluate` takes the best\n"
        "checkpoint's adapter as it is, and so do `higgsc generate --adapter` and `higgsc serve --adapter`.",
    ),
    "HC513": Code(
        "how wide a Whisper is",
        "The projector has a row for each feature of the model and a column for each of the Whisper's encoder. The\n"
        "compiler knows the widths of OpenAI's Whispers (`higgsc/catalog/whisper.py`); it loads nothing, so that of\n"
        "another one, `d_model` of its config.json, has to be in the spec: `model.whisper.width`.",
    ),
    "HC601": Code(
        "the cluster refuses a job",
        "Before anything is submitted, every job is shown to the scheduler (`sbatch --test-only`). What it says is\n"
        "printed at the value that it is about. `higgsc doctor SPEC` compares all of them with the cluster at once.",
    ),
    "HC602": Code(
        "the site does not fit its cluster",
        "`higgsc doctor`, on a login node, compares a site with what `scontrol` and `sinfo` say: partition, time\n"
        "limit, nodes, GPUs, cores, memory, account, QOS. Jobs that ask for what is not there are refused, or wait\n"
        "for ever.",
    ),
    "HC603": Code(
        "the site fits its cluster, but not as it stands now",
        "`higgsc doctor` found that jobs would be taken, and wait: too few of the nodes that fit can take jobs.",
        "warning",
    ),
    "HC503": Code(
        "an adapter on nothing",
        "Neither `lora.targets` nor `lora.heads` names a module, so there is nothing to train.",
    ),
}
