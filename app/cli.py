"""`ternaus serve | segment | models | train`. Each command imports its wing when it is called."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from app import __version__
from app.errors import TernausError

app = typer.Typer(
    name="ternaus",
    help="Pictures in, masks out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models = typer.Typer(help="List, verify, import and publish models.", no_args_is_help=True)
app.add_typer(models, name="models")

StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="Model store: folder or fsspec URL. [TERNAUS_MODEL_STORE]"),
]


def _settings(**overrides: Any) -> Any:
    from app.settings import Settings

    return Settings.read(**overrides)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Pictures in, masks out."""


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [TERNAUS_HOST]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. [TERNAUS_PORT]")] = None,
    store: StoreOption = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Model to serve; repeat for more. [TERNAUS_MODELS]")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:N. [TERNAUS_DEVICE]")
    ] = None,
) -> None:
    """Serve the models of the store over HTTP. Every other setting is an environment variable."""
    from app.api.app import create_app
    from app.api.server import Server, listen

    settings = _settings(
        host=host,
        port=port,
        model_store=store,
        models=tuple(model) if model else None,
        device=device,
    )
    _log(settings.log_level)
    server: Server | None = None

    def fail(exc: BaseException) -> None:
        logging.getLogger("ternaus").critical("%s", exc, exc_info=_unless_ours(exc))
        assert server is not None
        server.fail(exc)

    shelf, engines = _store(settings), _engines(settings)
    application = create_app(
        settings,
        labels=lambda: settings.models or tuple(shelf.names()),
        resolve=shelf.resolve,
        open_engine=engines,
        on_failure=fail,
    )
    server = listen(
        application,
        host=settings.host,
        port=settings.port,
        grace_s=settings.drain_grace_s,
        log_level=settings.log_level,
    )
    server.run()
    if server.failure is not None or not server.started:
        raise typer.Exit(1)


@app.command()
def segment(
    pictures: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the masks.")] = Path("masks"),
    format: Annotated[str, typer.Option(help="Format of the masks.")] = "png",
    model: Annotated[str | None, typer.Option(help="`name` or `name@version`.")] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Instead of the model's own.")
    ] = None,
    store: StoreOption = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:N. [TERNAUS_DEVICE]")
    ] = None,
) -> None:
    """Segment files the way the server does, with a progress bar."""
    from app.api.app import rules_of
    from app.serving.files import segment_files

    settings = _settings(model_store=store, device=device, models=(model,) if model else None)
    _log("warning" if settings.log_level == "info" else settings.log_level)
    shelf = _store(settings)
    failed = segment_files(
        pictures,
        out,
        format=format,
        threshold=threshold,
        label=model or settings.default_model or None,
        labels=settings.models or tuple(shelf.names()),
        rules=rules_of(settings),
        resolve=shelf.resolve,
        open_engine=_engines(settings),
    )
    if failed:
        raise typer.Exit(1)


@models.command("list")
def list_models(store: StoreOption = None) -> None:
    """Show every model and version of the store, and what is wrong with it."""
    from rich.console import Console
    from rich.table import Table

    shelf = _store(_settings(model_store=store))
    table = Table("model", "architecture", "classes", "threshold", "scores", "licence")
    for name in shelf.names():
        for version in shelf.versions(name):
            manifest = shelf.manifest(f"{name}@{version}")
            table.add_row(
                manifest.label,
                manifest.architecture,
                ", ".join(entry.name for entry in manifest.classes),
                f"{manifest.threshold:g}",
                ", ".join(f"{s.measure} {s.value:.3f} ({s.averaging})" for s in manifest.scores),
                manifest.licence.identifier,
            )
    Console().print(table)
    for problem in shelf.problems():
        typer.echo(str(problem), err=True)


@models.command()
def verify(
    labels: Annotated[
        list[str] | None, typer.Argument(help="`name` or `name@version`; all if none.")
    ] = None,
    store: StoreOption = None,
) -> None:
    """Check every byte of models against their manifests; exit 1 if anything is damaged."""
    shelf = _store(_settings(model_store=store))
    wanted = labels or [f"{n}@{v}" for n in shelf.names() for v in shelf.versions(n)]
    damaged = False
    for label in wanted:
        report = shelf.verify(label, finite=True)
        state = "sound" if report.sound else "damaged"
        typer.echo(f"{report.label}: {state}, {report.files} files, {report.size_bytes:,} bytes")
        for finding in report.findings:
            typer.echo(f"  {finding}", err=True)
        damaged = damaged or not report.sound
    if damaged:
        raise typer.Exit(1)


@models.command("import")
def import_model(
    checkpoint: Annotated[Path, typer.Argument(help="A published .pt, .pth or .safetensors file.")],
    name: Annotated[str, typer.Option(help="Name of the model in the store.")],
    sample: Annotated[
        Path, typer.Option(help="A picture that the model must segment to be ready.")
    ],
    classes: Annotated[
        str | None,
        typer.Option(
            help="Class names, comma separated, in channel order; `name:#rrggbb` sets a colour."
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="binary, multilabel or multiclass. Default: by the channels.")
    ] = None,
    interpolation: Annotated[
        str | None,
        typer.Option(help="bilinear or nearest, where the decoder interpolates: no file can tell."),
    ] = None,
    align_corners: Annotated[
        bool, typer.Option("--align-corners", help="The decoder interpolates with aligned corners.")
    ] = False,
    threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Probability above which a pixel counts.")
    ] = 0.5,
    licence: Annotated[str, typer.Option(help="Licence of the weights (SPDX).")] = "unknown",
    store: StoreOption = None,
) -> None:
    """Convert a published checkpoint and publish it as a model."""
    from app.training.importing import import_checkpoint

    shelf = _store(_settings(model_store=store))
    label = import_checkpoint(
        shelf,
        checkpoint,
        name=name,
        sample=sample,
        classes=classes,
        task=task,
        interpolation=interpolation,
        align_corners=align_corners,
        threshold=threshold,
        licence=licence,
        command=" ".join(["ternaus", *sys.argv[1:]]),
    )
    typer.echo(f"published {label} in {shelf.root}")


@models.command()
def publish(
    weights: Annotated[Path, typer.Argument(help="Canonical .safetensors, such as a run's best.")],
    name: Annotated[str, typer.Option(help="Name of the model in the store.")],
    about: Annotated[
        Path, typer.Option(help="JSON: architecture, classes, licence, provenance, scores, ...")
    ],
    card: Annotated[Path, typer.Option(help="Model card, Markdown.")],
    sample: Annotated[
        Path, typer.Option(help="A picture that the model must segment to be ready.")
    ],
    store: StoreOption = None,
) -> None:
    """Publish weights as the next version of a model."""
    from app.training.publishing import publish_about

    shelf = _store(_settings(model_store=store))
    version = publish_about(shelf, name, weights=weights, about=about, card=card, sample=sample)
    typer.echo(f"published {name}@{version} in {shelf.root}")


@models.command()
def copy(
    label: Annotated[str, typer.Argument(help="`name` or `name@version` in the store `--from`.")],
    source: Annotated[str, typer.Option("--from", help="Model store to take it from.")],
    name: Annotated[str | None, typer.Option(help="Name in this store. Default: the same.")] = None,
    store: StoreOption = None,
) -> None:
    """Publish a version of another store in this one, verified, as the next version."""
    from app.store.store import ModelStore

    settings = _settings(model_store=store)
    shelf = _store(settings)
    origin = ModelStore(source, cache=settings.cache_dir / "store")
    manifest = origin.manifest(label)
    version = shelf.publish(name or manifest.name, manifest.draft(), origin.fetch(manifest.label))
    typer.echo(f"published {name or manifest.name}@{version} in {shelf.root}")


@app.command()
def train(
    data: Annotated[
        list[str],
        typer.Option(help="Folder with images/ and masks/; `DIR:share` weighs several."),
    ],
    validate: Annotated[list[str], typer.Option(help="Folder to score on; never trained on.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")],
    architecture: Annotated[str, typer.Option(help="Such as ternausnet11.")] = "ternausnet11",
    encoder: Annotated[
        str, typer.Option(help="imagenet, none, or a safetensors file.")
    ] = "imagenet",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 1000,
    batch: Annotated[int, typer.Option(min=1, help="Crops in a step.")] = 8,
    crop: Annotated[int, typer.Option(min=64, help="Side of a crop.")] = 256,
    rate: Annotated[float, typer.Option(min=0.0, help="Highest learning rate.")] = 3e-4,
    seed: Annotated[int, typer.Option(help="Same seed, same machine: same curve.")] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the run was killed.")
    ] = False,
) -> None:
    """Fine-tune a binary model on folders of pictures and masks."""
    from app.training.crops import CropPlan
    from app.training.train import Plan
    from app.training.train import train as run

    shares: dict[str, float] = {}
    for entry in data:
        folder, _, share = entry.rpartition(":")
        try:
            shares[folder or entry] = float(share) if folder else 1.0
        except ValueError:
            shares[entry] = 1.0
    best = run(
        Plan(
            data=shares,
            validate=validate,
            out=str(out),
            architecture=architecture,
            encoder=encoder,
            steps=steps,
            batch=batch,
            crop=CropPlan(size=crop),
            rate=rate,
            seed=seed,
        ),
        resume=resume,
        say=lambda line: typer.echo(line),
    )
    typer.echo(f"best weights: {best}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="`name` or `name@version` in the store.")],
    data: Annotated[Path, typer.Option(help="Folder with images/ and masks/.")],
    store: StoreOption = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:N. [TERNAUS_DEVICE]")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="Write everything, per picture too, here.")
    ] = None,
) -> None:
    """Score a model through the engine that serves it: IoU and Dice, and a sweep of thresholds."""
    from app.training.evaluate import evaluate_folder

    settings = _settings(model_store=store, device=device)
    engine = _engines(settings)(_store(settings).resolve(model))
    try:
        report = evaluate_folder(engine, data)
    finally:
        engine.close()
    typer.echo(report.table())
    if json is not None:
        json.write_text(report.json())


def _store(settings: Any) -> Any:
    from app.store.store import ModelStore

    return ModelStore(settings.model_store, cache=settings.cache_dir / "store")


def _engines(settings: Any) -> Any:
    """Places a model on the device that the settings name."""
    from app.engine.choose import EngineOptions, open_engine

    options = EngineOptions(
        device=settings.device,
        backend=settings.backend,
        precision=settings.precision,
        threads=settings.engine_threads,
        cache_dir=settings.cache_dir / "engines",
    )
    return lambda spec, sample=None: open_engine(spec, options, sample=sample)


def _log(level: str) -> None:
    # Pillow warns of odd but harmless files; what matters it raises, and the decoder checks.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.basicConfig(
        level=level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )


def _unless_ours(exc: BaseException) -> BaseException | None:
    """A traceback is for defects; our own errors say what is wrong in one sentence."""
    return None if isinstance(exc, TernausError) else exc


def main() -> NoReturn:
    """Entry point: our own errors become one line and exit code 1 (2 for a wrong setting)."""
    from app.errors import SettingsError

    try:
        app(standalone_mode=True)
    except SettingsError as exc:
        sys.stderr.write(f"error: {exc}\n")
        sys.exit(2)
    except TernausError as exc:
        sys.stderr.write(f"error: {exc}\n")
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()
