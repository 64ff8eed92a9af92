"""A complete corpus: recognised, checked and described from prepare.json and the manifests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from roberta_dist.corpus.manifest import read_manifest
from roberta_dist.corpus.sources import SourceFiles
from roberta_dist.corpus.workfolder import WORK_NAME
from roberta_dist.errors import ConfigError, DataFault
from roberta_dist.units import human_count


def leave_alone(output: Path, settings: dict[str, Any], source: SourceFiles) -> bool:
    """Whether `output` is complete with these settings; said on the console if so.

    Raises:
        ConfigError: it is complete with other settings.
        DataFault: it is damaged.
    """
    path = output / "prepare.json"
    if not path.is_file():
        return False
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        found = report["settings"]
        for key in sorted(settings.keys() | found.keys()):
            if settings.get(key) != found.get(key):
                raise ConfigError(
                    f"output={output}: prepared with {key}={found.get(key)}, "
                    f"the command says {settings.get(key)}",
                    "give another output=, or remove the folder",
                )
        for split, facts in report["splits"].items():
            _check_split(output / split, facts["manifest_sha256"])
        changed = report["source"]["sha256"] != source.fingerprint(with_times=False)
    except (ValueError, KeyError, TypeError) as error:
        raise DataFault(f"{path}: damaged ({error})", f"remove {output}, run again") from error
    shutil.rmtree(output / WORK_NAME, ignore_errors=True)  # killed between marker and clean-up
    print(f"{output}: complete with these settings, left alone")
    if changed:
        print(
            "note: files of the source came, went or changed size since; this corpus does not "
            "have them. To include them, give another output=, or remove the folder."
        )
    print(describe(report))
    return True


def _check_split(folder: Path, sha256: str) -> None:
    manifest = read_manifest(folder)
    wrong = [
        shard.name
        for shard in manifest.shards
        if not (folder / shard.name).is_file()
        or (folder / shard.name).stat().st_size != shard.bytes
    ]
    if manifest.sha256 != sha256 or wrong:
        raise DataFault(
            f"{folder}: {', '.join(wrong) or 'manifest.json'} missing or changed since prepare",
            f"remove {folder.parent}, run prepare again",
        )


def describe(report: dict[str, Any]) -> str:
    """A short table of prepare.json."""
    read, tokenizer = report["read"], report["tokenizer"]
    lines = [
        f"{'':12}{'documents':>10}{'text MB':>9}{'tokens':>9}{'B/token':>9}{'shards':>8}"
        f"{'packs':>7}{'unigram entropy':>17}"
    ]
    # Read back from disk the keys are sorted; training comes first.
    for split, facts in sorted(report["splits"].items(), reverse=True):
        lines.append(
            f"{split:12}{facts['documents']:>10}{facts['text_bytes'] / 1e6:>9.1f}"
            f"{human_count(facts['tokens']):>9}"
            f"{facts['text_bytes'] / max(1, facts['tokens']):>9.2f}{facts['shards']:>8}"
            f"{facts['packs']:>7}{facts['unigram_entropy']:>12.3f} nats"
        )
    splits = report["splits"].values()
    text_bytes = sum(facts["text_bytes"] for facts in splits)
    held_out = report["splits"].get("held_out", {"text_bytes": 0})["text_bytes"]
    lines += [
        _accounts(read, [*splits]),
        f"{read['repaired']} with invalid Unicode replaced, {read['cut']} cuts of over-long ones, "
        f"{read['ignored']} tar members of other kinds, "
        f"{sum(facts['forced_cuts'] for facts in splits)} forced cuts; "
        f"held out {100 * held_out / text_bytes:.2f} % of the text",
        f"tokenizer: {tokenizer['vocab_size']} entries, encoded through {tokenizer['backend']}",
    ]
    wanted = report["settings"]["tokenizer.vocab_size"]
    if report["settings"]["tokenizer.path"] is None and tokenizer["vocab_size"] < wanted:
        lines.append(f"note: the text has no more than those; tokenizer.vocab_size={wanted}")
    return "\n".join(lines)


def _accounts(read: dict[str, Any], splits: list[dict[str, Any]]) -> str:
    """Where every document went; the merge has checked that the numbers add up."""
    kept = sum(facts["documents"] for facts in splits)
    duplicates = sum(facts["duplicates"] for facts in splits)
    near = sum(facts["near_duplicates"] for facts in splits)
    reasons = {
        "empty": read["empty"],
        "too short": read["too_short"],
        "in other languages": read["other_language"],
        "duplicates": duplicates,
        "near duplicates": near,
        "beyond corpus.max_mib": read["beyond_max_mib"],
    }
    dropped = [f"{count} {name}" for name, count in reasons.items() if count]
    return (
        f"read {read['documents']} documents, {read['text_bytes'] / 1e6:.1f} MB of text = "
        + " + ".join([f"{kept} kept", *dropped])
    )
