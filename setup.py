"""Package metadata. Exact versions that were tested live in launch/constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

EXTRAS = {
    "sources": ["pyarrow>=16", "datasets>=3", "sentencex>=1.0", "datasketch>=1.6"],
    "remote": ["s3fs>=2024.6", "aiohttp>=3.9"],
}
"""What only some sources of `prepare`, and only corpora in object stores, need."""


def data_files(folder: str) -> list[tuple[str, list[str]]]:
    """Every file below `folder`, installed under share/roberta_dist with the same tree."""
    tree: dict[str, list[str]] = {}
    for path in sorted((ROOT / folder).rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            relative = path.relative_to(ROOT)
            tree.setdefault(f"share/roberta_dist/{relative.parent}", []).append(str(relative))
    return sorted(tree.items())


setup(
    name="roberta_dist",
    version="0.1.0",
    description="Exact, resumable distributed pretraining of RoBERTa-style encoders",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=find_packages(include=["roberta_dist", "roberta_dist.*"]),
    package_data={"roberta_dist": ["py.typed"]},
    data_files=data_files("conf") + data_files("launch"),
    install_requires=[
        "torch>=2.6",
        "deepspeed>=0.19.8",
        "webdataset>=1.0.2",
        "wandb>=0.31",
        "hydra-core>=1.3.2,<1.4",
        "omegaconf>=2.3,<2.4",
        "numpy>=1.26",
        "tokenizers>=0.21",
        "tiktoken>=0.9",
        "transformers>=4.50",
        "safetensors>=0.5",
        "tensorboard>=2.15",
        "matplotlib>=3.8",
        "tqdm>=4.66",
        "zstandard>=0.22",
        "fsspec>=2024.6",
        "psutil>=5.9",
        "ninja>=1.11",
    ],
    extras_require={
        **EXTRAS,
        "gs": ["gcsfs>=2024.6"],
        "test": [
            *(package for packages in EXTRAS.values() for package in packages),
            *(
                "pytest",
                "hypothesis",
                "ruff",
                "mypy",
                "setuptools>=68",
                "wheel",
                "moto[server]>=5",
                "pytorch_optimizer>=4.1",
                "accelerate>=1.1",
            ),
        ],
    },
    entry_points={"console_scripts": ["roberta-dist=roberta_dist.cli:console"]},
)
