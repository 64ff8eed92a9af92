#!/usr/bin/env bash
# From Python and a compiler to a trained, evaluated and exported model, on what this machine has.
# Starting it again redoes nothing that is complete.   bash launch/quickstart.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/setup.sh
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_OFFLINE=1
unset PYTHONPATH PYTHONHOME RANK WORLD_SIZE LOCAL_RANK LOCAL_SIZE

corpus=corpora/quickstart
run=runs/quickstart
workers=2
if [[ $(nvidia-smi -L 2>/dev/null | grep -c '^GPU') == 1 ]]; then
    workers=1 # two ranks cannot share one GPU
fi

step() { printf '\n== %s\n' "$1"; }
SECONDS=0

step "1/6 prepare: the documentation in this Python becomes a tokenizer and shards"
roberta-dist prepare corpus=quickstart tokenizer.vocab_size=8192 tokenizer.train_mib=16 output=$corpus

step "2/6 launch: $workers DeepSpeed ZeRO workers"
roberta-dist launch experiment=quickstart cluster=local cluster.workers_per_node=$workers \
    data.path=$corpus run_dir=$run
if [[ ! -f $run/DONE ]]; then
    echo "launch/quickstart.sh: stopped on request; the same command goes on from there" >&2
    exit 130
fi

step "3/6 evaluate: held-out loss against the unigram entropy"
roberta-dist evaluate run_dir=$run

step "4/6 export: a Hugging Face folder, compared with transformers"
roberta-dist export run_dir=$run

step "5/6 report: the metrics as a picture"
roberta-dist report run_dir=$run

step "6/6 predict: what the model puts in place of <mask>"
sentences=$(printf '"%s",' \
    "Return a list of the <mask> in the directory." \
    "This function returns <mask> if the object is a string." \
    "If the file does not <mask>, an error is raised.")
roberta-dist predict task=fill_mask model_path=$run/export "text=[${sentences%,}]"

cat <<SUMMARY

== done in $((SECONDS / 60)) min $((SECONDS % 60)) s after installation
corpus       $PWD/$corpus
run          $PWD/$run (metrics.jsonl, logs/, checkpoints/)
picture      $PWD/$run/metrics.png
model        $PWD/$run/export (transformers.pipeline("fill-mask", model=...))
try          source .venv/bin/activate; roberta-dist --help
SUMMARY
