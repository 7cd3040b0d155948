"""Packaging of ofa_fairseq: the plugin folder that `--user-dir` names is also an installable package."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="ofa_fairseq",
    version="0.1.0",
    description="OFA (One-For-All) as a plugin for stock fairseq on current PyTorch",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["ofa_fairseq", "ofa_fairseq.*"]),
    package_data={"ofa_fairseq": ["py.typed", "config/**/*.yaml"]},
    install_requires=[
        # fairseq's main branch under the distribution name that installs on current Pythons.
        "ve-fairseq>=0.12.3",
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy>=2.0",
        "pillow>=10",
        "omegaconf>=2.1",
        "pyyaml>=6",
        "regex",
        "sentencepiece>=0.2",
        "scikit-learn>=1.3",
        "sacrebleu>=2.3",
        "rouge-score>=0.1.2",
        "tensorboard>=2.14",
        "tqdm>=4.60",
    ],
    extras_require={
        # Ranking and measuring drawn pictures; each needs weights that are given as a file.
        "clip": ["open_clip_torch>=3.0"],
        "metrics": ["torchmetrics>=1.4", "torch-fidelity>=0.3"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "pycocoevalcap>=1.2",
            "ruff>=0.6",
            "mypy>=1.11",
            "open_clip_torch>=3.0",
            "torchmetrics>=1.4",
            "torch-fidelity>=0.3",
        ],
    },
)
