"""Mislabelled-data detection: which labels of a text classifier's training set are wrong, by influence.

The classifier is fine-tuned on the labels as given; every training sample is scored by its influence on a validation
set with clean labels or, where there is none, on samples that the classifier of a fold is confident of. Scores are
influences: highest = most harmful = most suspicious. With labels that were flipped on purpose, or true labels at hand,
detection rates are reported as in HyperINF (arXiv 2410.05090) and DataInf (arXiv 2310.00902); without them there is the
ranked list alone.
"""

from __future__ import annotations

from vlmsel import processes, progress, runs
from vlmsel.checks import check_at_least_one
from vlmsel.data.cleaned import Clean
from vlmsel.data.labelled import Source
from vlmsel.models.classifier import EncoderLora, Tune
from vlmsel.models.devices import pick_device
from vlmsel.reporting.detection import clean_file, heading, show_detection
from vlmsel.scorers import Scorer
from vlmsel.scorers.base import gradient_scorers
from vlmsel.scorers.load import load_scorers
from vlmsel.scoring.aggregate import Aggregate
from vlmsel.scoring.first_batch import Check
from vlmsel.studies.labelled_data import Amounts, check_folds, draw, open_labelled
from vlmsel.studies.mislabelled import ARM, INSIDE, Mislabelled, baselines
from vlmsel.studies.tuned import Recipe
from vlmsel.training.fine_tuning import FineTuning

BEST = "HyperINF.100"  # found most wrong labels over SST-2, CoLA and MRPC (recipes/glue_mislabel), before LiSSA
SCORERS = (
    "Random",
    "TracIn",
    "TracIn(block_scale=True, name='TracIn.scaled')",
    "DataInf",
    "LiSSA",
    "HyperINF",
    f"HyperINF(damping=100, name='{BEST}')",
)
ADAPTERS, TRAINING = EncoderLora(), FineTuning()


def detect(
    out: str,
    model: str,
    task: str | None = None,
    data: str | None = None,
    train: str | None = None,
    validation: str | None = None,
    text_columns: tuple[str, ...] | None = None,
    label_column: str = "label",
    true_label_column: str | None = None,
    flip: float | None = None,
    train_samples: int | None = None,
    validation_samples: int | None = None,
    folds: int | None = None,
    clean: Clean | None = None,
    seeds: int = 1,
    tune: Tune = "lora",
    lora: EncoderLora = ADAPTERS,
    training: FineTuning = TRAINING,
    fresh_head: bool = False,
    scorers: tuple[str, ...] = SCORERS,
    blocks: str | None = None,
    aggregate: Aggregate = "sum",
    rank_by: str | None = None,
    max_length: int | None = None,
    batch_tokens: int = 1024,
    scale_samples: int | None = 512,
    check: Check = "first-batch",
    device: str = "auto",
    config: str = "",
) -> None:
    """Write `out/suspects.csv` (most suspicious first) and, where wrong labels are known, the table of detection rates.

    Scores are influences: highest = most harmful = most suspicious.

    Args:
        out: the run folder.
        model: folder or hub name of an encoder (BERT, RoBERTa, DistilBERT, …) with its tokenizer; safetensors.
        task: a task of GLUE: cola, sst2, mrpc, qqp, qnli or rte, with `data`.
        data: the folder of GLUE's official train.tsv and dev.tsv, or a Hugging Face data set: a folder or a hub name,
            such as nyu-mll/glue.
        train: the training samples, a CSV, TSV, JSON-lines or JSON file; with `data`, the name of its split.
        validation: the validation samples, whose labels are clean; as `train`. Without a file of them give `folds`.
        text_columns: the columns with the texts, one or two; text when left out.
        label_column: the column with the labels, words or numbers.
        true_label_column: a column with the true labels, where you have them: rates are then those of the real errors.
        flip: share of the training labels that get another class on purpose; 0 looks for the errors that are there
            already. 0.2 with `task` and 0 with your own data when left out.
        train_samples: how many training samples to draw; 4500 with `task` and all of your own data when left out.
        validation_samples: how many validation samples to draw; 500 with `task` and all otherwise.
        folds: train as many models more, each on all training samples but a part that it judges: how probable the given
            label is, which is likely, and how many are wrong. Without validation samples they make the scores too.
        clean: write `train` again without the labels before the cut-off (drop) or with the likely ones (relabel).
        seeds: how many times to do it all; a seed draws the subsets, the flips, the fresh head, the adapters, the order
            of the samples and dropout, and random scores. More seeds may be added to a finished run.
        tune: lora (adapters and head) or last-layer (the head alone).
        lora: the adapters.
        training: how to fine-tune.
        fresh_head: draw the head anew also where the checkpoint has one.
        scorers: names (HyperINF), names with settings (HyperINF(damping=10, name='HyperINF.10')) or import paths.
        blocks: whose gradients count, as for `vlmsel score`; the adapters, or the head, when left out.
        aggregate: how blocks' scores add up: sum, scaled (each block by its own scale), rank (mean rank) or vote.
        rank_by: the scorer that the list is ranked by, SelfConfidence or SelfConfidence.folds (1 - the probability of
            the given label). Without clean samples the latter, which the estimate is of too; else HyperINF.100 (damping
            100, which found most in our studies), else HyperINF, else the first that looks at gradients.
        max_length: longest sample in tokens; what the model takes when left out. What is longer is cut.
        batch_tokens: most tokens per batch of a scoring pass, padding included; CPUs are fastest below about 1000.
        scale_samples: how many samples the damping of DataInf is measured on before the pass; all of them when null.
        check: first-batch compares the gradients of a few samples with autograd's own before the passes begin; none
            goes without.
        device: auto, cpu, cuda or cuda:<number>.
        config: the resolved configuration as text.
    """
    if processes.count() > 1:
        raise ValueError("detect runs as one process; start it without torchrun or accelerate launch")
    source = Source(task, data, train, validation, text_columns, label_column, true_label_column)
    loaded = load_scorers(scorers)
    if reading := next((one for one in loaded if one.files), None):
        raise ValueError(f"{reading.name} reads {', '.join(reading.files)}, which the models tuned here do not leave")
    amounts = Amounts.of(source, flip, train_samples, validation_samples)
    check_folds(source, amounts.flip, folds, clean)
    ranked = _rank_by(rank_by, loaded, baselines(source.clean, folds or 0))
    check_at_least_one(seeds=seeds, max_length=max_length, batch_tokens=batch_tokens, scale_samples=scale_samples)
    place = pick_device(device)
    folder = runs.open_run(out, config)
    found = open_labelled(source, folder)
    runs.same_inputs(folder, found.digests(), more=True)
    drawn = [draw(found, amounts, seed) for seed in range(seeds)]
    recipe = Recipe(model, tune, lora, training, tuple(loaded), blocks, fresh_head, max_length, batch_tokens,
                    scale_samples, check, place, folds or 0, aggregate)  # fmt: skip
    study = Mislabelled(recipe, found, drawn, config)
    metrics = [answers[ARM] for answers in study.run(folder, range(seeds), [ARM])]
    estimate = show_detection(folder, heading(found.title, metrics, amounts.flip), found.train, metrics, ranked)
    told = [estimate.told] if folds else []
    if clean is not None and train is not None:
        told.append(clean_file(folder, train, label_column, estimate, clean))
    progress.ended(f"suspects, most suspicious first: {folder / 'suspects.csv'}", *told, then=f"vlmsel report {out}")


def _rank_by(name: str | None, scorers: list[Scorer], beside: list[str]) -> str:
    """Return the scorer or baseline that the list is ranked by."""
    names = [*(scorer.name for scorer in scorers), *beside]
    if len(set(names)) < len(names):
        raise ValueError(f"{' and '.join(beside)} stand beside the scorers; give the scorer of this name another one")
    if name is not None and name not in names:
        raise ValueError(f"rank_by names the scorer {name!r}; there are {', '.join(names)}")
    informed = [scorer.name for scorer in gradient_scorers(scorers)]
    alone = () if INSIDE in beside else beside
    return name or next(one for one in (*alone, BEST, "HyperINF", *informed, *names) if one in names)
