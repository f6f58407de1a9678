"""`ternaus serve | segment | models | train | evaluate | export | bench`, each importing its own
wing.
"""

from __future__ import annotations

import logging
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from app import __version__
from app.errors import BadParameter, PictureError, TernausError, Unavailable

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
    frontends: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=64,
            help="Processes that decode and encode; 1: all in one; 0: measure. [TERNAUS_FRONTENDS]",
        ),
    ] = None,
) -> None:
    """Serve the models of the store over HTTP. Every other setting is an environment variable."""
    from app.api.app import keys_of
    from app.fronts.count import one_process

    settings = _settings(
        host=host,
        port=port,
        model_store=store,
        models=tuple(model) if model else None,
        device=device,
        frontends=frontends,
    )
    _log(settings.log_level, settings.log_format)
    # Here, so that a file of keys that cannot be read ends the server before it begins.
    keys_of(settings)
    code = _serve_alone(settings) if one_process(settings) else _serve_together(settings)
    if code:
        raise typer.Exit(code)


def _serve_together(settings: Any) -> int:
    """With an engine process and front ends; the exit code."""
    from app.fronts.supervisor import supervise

    return supervise(
        settings,
        opening=partial(_opening, settings),
        log_to=partial(_log, settings.log_level, settings.log_format),
    )


def _opening(settings: Any) -> Any:
    """Called in the engine process."""
    from app.assembly import labels_of
    from app.fronts.parts import Opening

    shelf = _store(settings)
    return Opening(
        labels=lambda: labels_of(settings, shelf),
        resolve=shelf.resolve,
        open_engine=_engines(settings),
        newest=shelf.newest,
    )


def _serve_alone(settings: Any) -> int:
    """With everything in this process; the exit code."""
    from app.api.app import create_app, line_of
    from app.api.server import Server, listen
    from app.assembly import labels_of

    server: Server | None = None

    def fail(exc: BaseException) -> None:
        logging.getLogger("ternaus").critical("%s", exc, exc_info=_unless_ours(exc))
        assert server is not None
        server.fail(exc)

    shelf, engines = _store(settings), _engines(settings)
    application = create_app(
        settings,
        labels=lambda: labels_of(settings, shelf),
        resolve=shelf.resolve,
        newest=shelf.newest,
        open_engine=engines,
        on_failure=fail,
    )
    server = listen(
        application,
        host=settings.host,
        port=settings.port,
        grace_s=settings.drain_grace_s,
        log_level=settings.log_level,
        line=line_of(settings, application.state.house.metrics),
    )
    server.run()
    return 1 if server.failure is not None or not server.started else 0


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
    from app.assembly import labels_of
    from app.serving.files import segment_files

    settings = _settings(model_store=store, device=device, models=(model,) if model else None)
    _log("warning" if settings.log_level == "info" else settings.log_level, "text")
    shelf = _store(settings)
    failed = segment_files(
        pictures,
        out,
        format=format,
        threshold=threshold,
        label=model or settings.default_model or None,
        labels=labels_of(settings, shelf),
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
    longest_side: Annotated[
        int | None,
        typer.Option(min=32, help="Larger pictures are scaled down to this for the net."),
    ] = None,
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
        longest_side=longest_side,
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
def average(
    parts: Annotated[
        list[str],
        typer.Argument(help="Models or .safetensors files of one architecture; `PART:share`."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Weights file to write.")],
    store: StoreOption = None,
) -> None:
    """Average the weights of runs that went on from one model: often better than each of them."""
    from app.training import options
    from app.training.averaging import average as write

    shelf = _store(_settings(model_store=store))
    write(
        {
            Path(options.start(part, shelf) or part): share
            for part, share in options.shares(parts).items()
        },
        out,
    )
    typer.echo(f"wrote {out}")


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
        typer.Option(
            help="Folder (images/ and masks/, or pairs), Kaggle CSV or COCO JSON; repeat for more, "
            "`PLACE:share` weighs them."
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Publish the best weights under this name at the end.")
    ] = None,
    validate: Annotated[
        list[str] | None,
        typer.Option(help="Place to score on; never trained on. Default: part of `--data`."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run. Default: runs/NAME.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the run was killed.")
    ] = False,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            help="A class, in order: `name`, `name=value` in masks, `name:#rrggbb`; repeat.",
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="binary, multiclass or multilabel. Default: by the data.")
    ] = None,
    ignore_label: Annotated[
        int | None, typer.Option(min=0, max=255, help="Value of unlabelled pixels in masks.")
    ] = None,
    rle_order: Annotated[
        str, typer.Option(help="Run lengths of a CSV: F down columns, C along rows.")
    ] = "F",
    held_back: Annotated[
        float, typer.Option(min=0.01, max=0.9, help="Share to score on without `--validate`.")
    ] = 0.15,
    group: Annotated[
        str | None,
        typer.Option(help="Regular expression: pictures of one key stay on one side of the split."),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Go on without files that cannot be used.")
    ] = False,
    architecture: Annotated[str, typer.Option(help="Such as ternausnet11.")] = "ternausnet11",
    upsampling: Annotated[
        str | None, typer.Option(help="Of the decoder. Default: the architecture's own.")
    ] = None,
    encoder: Annotated[
        str, typer.Option(help="imagenet, none, or a safetensors file.")
    ] = "imagenet",
    start: Annotated[
        str | None,
        typer.Option(help="Model or safetensors file to go on from, instead of an encoder."),
    ] = None,
    initialisation: Annotated[str, typer.Option(help="he or lecun-uniform.")] = "he",
    transposed: Annotated[
        str, typer.Option(help="Transposed convolutions: bilinear, or same as the others.")
    ] = "bilinear",
    freeze: Annotated[
        int, typer.Option(min=0, help="Steps before the encoder learns as well.")
    ] = 0,
    loss: Annotated[
        list[str] | None,
        typer.Option(
            help="cross-entropy, log-jaccard, dice, focal or lovasz, with `:weight`; repeat to "
            "add up. Default: cross-entropy and log-jaccard, as in the paper."
        ),
    ] = None,
    class_weight: Annotated[
        list[float] | None, typer.Option(help="Of each class, in order; repeat.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 1000,
    batch: Annotated[int, typer.Option(min=1, help="Crops in a batch, over all processes.")] = 8,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches in a step.")] = 1,
    crop: Annotated[int, typer.Option(min=32, help="Side of a crop in pixels.")] = 256,
    augmentation: Annotated[
        str, typer.Option(help="aerial (no up), normal, light or none.")
    ] = "aerial",
    zoom: Annotated[
        str | None,
        typer.Option(help="LOW:HIGH, pixels of a crop for one of the picture. Default: by level."),
    ] = None,
    style_mix: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="How often crops lend each other their style (MixStyle)."
        ),
    ] = 0.0,
    rate: Annotated[float, typer.Option(min=0.0, help="Highest learning rate.")] = 3e-4,
    encoder_rate: Annotated[
        float, typer.Option(min=0.0, help="Of the encoder, times `--rate`.")
    ] = 0.3,
    schedule: Annotated[str, typer.Option(help="cosine, linear, poly, step, constant.")] = "cosine",
    half: Annotated[
        bool | None,
        typer.Option(
            "--half/--float32",
            help="Mixed precision (bfloat16), or not. Default: where the device computes in it.",
        ),
    ] = None,
    average: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Memory of the weights' moving average.")
    ] = 0.99,
    longest_side: Annotated[
        int | None,
        typer.Option(min=32, help="Scale larger pictures down to this side, also when serving."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same machine: same curve.")] = 1,
    score: Annotated[int, typer.Option(min=1, help="Steps between scores.")] = 150,
    save: Annotated[int, typer.Option(min=1, help="Steps between savings.")] = 25,
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw crops.")] = 1,
    memory: Annotated[
        float, typer.Option(min=0.0, help="GiB of pictures kept decoded; above, read as needed.")
    ] = 4.0,
    charts: Annotated[
        bool, typer.Option("--charts/--no-charts", help="TensorBoard logs and curves.")
    ] = True,
    description: Annotated[str, typer.Option(help="One sentence, for the manifest.")] = "",
    licence: Annotated[str, typer.Option(help="Of the weights (SPDX).")] = "unknown",
    data_licence: Annotated[str, typer.Option(help="Of the data.")] = "unknown",
    store: StoreOption = None,
    device: Annotated[
        str | None, typer.Option(help="Of the final scores: auto, cpu, cuda. [TERNAUS_DEVICE]")
    ] = None,
) -> None:
    """Train a model on your own pictures and masks, and publish it.

    Every file is looked at first, and everything that is bad is named at once. Killed at any
    moment, `--resume` goes on to the same result. `torchrun -m app train ...` uses several devices.
    """
    from app.training import options
    from app.training.train import About, train_and_publish
    from app.training.train import train as run

    settings = _settings(model_store=store, device=device)
    shelf = _store(settings)
    plan = options.plan(
        data=data,
        name=name,
        out=out,
        validate=validate or (),
        classes=classes or (),
        task=task,
        ignore=ignore_label,
        order=rle_order,
        held_back=held_back,
        group=group,
        skip_bad=skip_bad,
        architecture=architecture,
        upsampling=upsampling,
        encoder=encoder,
        start=options.start(start, shelf),
        scheme=initialisation,
        transposed=transposed,
        freeze=freeze,
        loss=loss or (),
        style_mix=style_mix,
        class_weights=class_weight or (),
        steps=steps,
        batch=batch,
        accumulate=accumulate,
        crop=crop,
        augmentation=augmentation,
        zoom=zoom,
        rate=rate,
        encoder_rate=encoder_rate,
        schedule=schedule,
        half=half,
        average=average,
        longest_side=longest_side,
        seed=seed,
        score=score,
        save=save,
        workers=workers,
        memory=int(memory * 2**30),
        charts=charts,
    )
    if name is None:
        run(plan, resume=resume)
        return
    label = train_and_publish(
        plan,
        store=shelf,
        about=About(name, description, licence, data_licence),
        resume=resume,
        options=options.final(settings.device, settings.cache_dir),
    )
    if label is not None:
        typer.echo(f"published {label} in {shelf.root}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="`name` or `name@version`.")],
    data: Annotated[
        list[str], typer.Option(help="Folder, Kaggle CSV or COCO JSON with known masks; repeat.")
    ],
    url: Annotated[
        str | None, typer.Option(help="Ask a running server instead of the model store.")
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="How to read the masks, as for `train`. Default: the model."),
    ] = None,
    ignore_label: Annotated[
        int | None, typer.Option(min=0, max=255, help="Value of unlabelled pixels in masks.")
    ] = None,
    rle_order: Annotated[
        str, typer.Option(help="Run lengths of a CSV: F down columns, C along rows.")
    ] = "F",
    key: Annotated[
        str | None,
        typer.Option(
            help="API key of the server; the variable keeps it out of `ps`. [TERNAUS_API_KEY]"
        ),
    ] = None,
    store: StoreOption = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:N. [TERNAUS_DEVICE]")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="Write everything, per picture too, here.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Write a PNG of the best and worst pictures here.")
    ] = None,
) -> None:
    """Score a model through its engine or a server: IoU, Dice, edges, a sweep of thresholds."""
    from rich.console import Console

    from app.serving.catalog import Sample
    from app.training.evaluate import evaluate_places
    from app.training.segmenters import EngineSegmenter, HttpSegmenter, Segmenter

    engine: Any = None
    settings = _settings(model_store=store, device=device, api_key=key)
    if url is None:
        spec = _store(settings).resolve(model)
        # With its sample, as the server opens it: without one, no precision but float32 is proven.
        engine = _engines(settings)(spec, Sample.of(spec).pixels)
    try:
        segmenter: Segmenter = (
            HttpSegmenter(url, model, key=settings.api_key.get_secret_value())
            if url is not None
            else EngineSegmenter(engine)
        )
        report = evaluate_places(
            segmenter,
            data,
            classes=classes or (),
            ignore=ignore_label,
            order=rle_order,
            sheet=sheet,
            console=Console(stderr=True),
        )
    finally:
        if engine is not None:
            engine.close()
    typer.echo(report.table())
    if json is not None:
        json.write_text(report.json())


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="`name` or `name@version` in the store.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, .onnx or .pt2.")],
    format: Annotated[
        str | None, typer.Option(help="onnx or torch. Default: by the file's suffix.")
    ] = None,
    store: StoreOption = None,
    device: Annotated[
        str | None, typer.Option(help="Of the engine to compare with. [TERNAUS_DEVICE]")
    ] = None,
) -> None:
    """Write a model as ONNX or torch.export, proven on its sample against the engine."""
    from app.training.export import export as write
    from app.training.export import format_of

    kind = format or format_of(out)
    settings = _settings(model_store=store, device=device)
    engine = _engines(settings)(_store(settings).resolve(model))
    try:
        done = write(engine, out, format=kind)
    finally:
        engine.close()
    typer.echo(
        f"wrote {done.path}; {done.checked_with} and the engine differ in "
        f"{done.agreement.changed:.4%} of the sample's pixels, by at most {done.largest:.4f} in "
        "probability"
    )


@app.command()
def bench(
    url: Annotated[str, typer.Argument(help="A running server, such as http://localhost:8000.")],
    pictures: Annotated[
        Path | None,
        typer.Option(help="Folder of pictures to send by turns. Default: the models' own samples."),
    ] = None,
    within: Annotated[
        float, typer.Option(min=0.001, help="Deadline of each picture, in seconds.")
    ] = 1.0,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of each load.")] = 10.0,
    clients: Annotated[int, typer.Option(min=1, help="Most clients at a time.")] = 64,
    format: Annotated[str, typer.Option(help="Format of the masks.")] = "png",
    form: Annotated[bool, typer.Option("--form", help="Send forms, not raw bodies.")] = False,
    header: Annotated[
        list[str] | None, typer.Option(help="`Name: value` to send along, such as a key; repeat.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write everything here as JSON.")] = None,
    store: StoreOption = None,
) -> None:
    """Find out what a running server can do: pictures a second, latency by load, refusals.

    It loads the server as much as it will bear, and more: not for one that others are using.
    """
    from app.bench.examination import examine
    from app.bench.messages import Target, message

    given = dict(_header(text) for text in header or ())
    given["x-request-timeout-ms"] = str(max(1, round(1000 * within)))
    target = Target.of(url, query=f"format={format}")
    bodies = _pictures(pictures, store)
    try:
        report = examine(
            target,
            [message(target, body, headers=given, form=form) for body in bodies],
            within_s=within,
            seconds=seconds,
            most_clients=clients,
            say=lambda words: typer.echo(words, err=True),
        )
    except OSError as exc:
        raise Unavailable(f"nobody answers at `{url}`: {exc}") from exc
    typer.echo(report.text())
    if json is not None:
        json.write_text(report.json() + "\n")


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise BadParameter(f"a header is `Name: value`, not `{text}`")
    return name.strip().lower(), value.strip()


def _pictures(folder: Path | None, store: str | None) -> list[bytes]:
    """The bytes of the pictures of a folder, or of the store's samples."""
    from app.serving.files import find

    if folder is not None:
        found = [path for path, _ in find([folder])]
    else:
        shelf = _store(_settings(model_store=store))
        found = [Path(shelf.resolve(name).sample_picture) for name in shelf.names()]
    if not found:
        raise PictureError(f"there is no picture in `{folder or 'the model store'}`")
    return [path.read_bytes() for path in found]


def _store(settings: Any) -> Any:
    from app.assembly import store_of

    return store_of(settings)


def _engines(settings: Any) -> Any:
    from app.assembly import engines_of

    return engines_of(settings)


def _log(level: str, format: str) -> None:
    from app import logs

    logs.set_up(level, format)


def _unless_ours(exc: BaseException) -> BaseException | None:
    """A traceback is for defects; our own errors say what is wrong in one sentence."""
    return None if isinstance(exc, TernausError) else exc


def main() -> NoReturn:
    """Entry point: our own errors become one line and exit code 1 (2 for a wrong setting)."""
    from app.errors import SettingsError
    from app.logs import tell as heard

    try:
        app(standalone_mode=True)
    except SettingsError as exc:
        sys.stderr.write(f"error: {exc}\n")
        sys.exit(2)
    except TernausError as exc:
        if not heard(exc):
            sys.stderr.write(f"error: {exc}\n")
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()
