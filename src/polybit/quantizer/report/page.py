"""report.html: one file that needs nothing else, no network and no script; light or dark as the reader's system is."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from polybit.amounts import gigabytes
from polybit.quantizer.report.charts import bits_map, colour_of, drift_chart, error_map, nats_bars, share_bar
from polybit.quantizer.report.findings import Findings
from polybit.quantizer.report.picture import DARK, LIGHT
from polybit.quantizer.report.words import duration, number, percent
from polybit.quantizer.tested import SelfTest

STYLE = """
:root { color-scheme: light dark; %s }
@media (prefers-color-scheme: dark) { :root { %s } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
header, main, footer { max-width: 1000px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 40px; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 44px 0 4px; }
p { max-width: 72ch; margin: 6px 0 12px; }
.soft, figcaption, footer { color: var(--soft); }
.verdict { border-left: 5px solid var(--good); padding: 6px 14px; margin: 18px 0; font-weight: 600; }
.verdict.failed { border-color: var(--bad); color: var(--bad); }
.verdict.none { border-color: var(--grid); font-weight: 400; }
dl.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 22px 0; }
dl.tiles div { border: 1px solid var(--grid); border-radius: 8px; padding: 10px 14px; }
dl.tiles dt { font-size: .82rem; color: var(--soft); }
dl.tiles dd { margin: 0; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
dl.tiles dd small { display: block; font-size: .78rem; font-weight: 400; color: var(--soft); }
figure { margin: 12px 0; overflow-x: auto; }
figure svg { display: block; width: 100%%; min-width: 620px; height: auto; }
figure.bar svg { min-width: 0; }
figcaption { font-size: .88rem; margin-top: 4px; }
svg text { font-family: system-ui, sans-serif; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: 8px 0; }
caption { text-align: left; color: var(--soft); padding-bottom: 4px; }
th, td { text-align: left; padding: 4px 18px 4px 0; border-bottom: 1px solid var(--grid); }
td.n, th.n { text-align: right; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .5em; }
blockquote { margin: 10px 0; padding: 8px 16px; border-left: 3px solid var(--accent); white-space: pre-wrap; }
code { font-size: .88em; overflow-wrap: anywhere; }
details { margin: 8px 0; overflow-x: auto; } summary { cursor: pointer; color: var(--accent); }
footer { padding: 40px 24px 48px; font-size: .85rem; }
"""


def page(findings: Findings) -> str:
    """The whole document."""
    title = escape(findings.title)
    body = "\n".join((*_head(findings), "<main>", *_sections(findings), "</main>", _foot(findings)))
    style = STYLE % (_variables(LIGHT), _variables(DARK))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _variables(palette: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in palette.items())


# ---- the top


def _head(findings: Findings) -> Iterator[str]:
    yield "<header>"
    yield f"<h1>{escape(findings.title)}</h1>"
    yield f'<p class="soft">{escape(findings.architecture)}, {findings.num_layers} layers</p>'
    yield _verdict(findings.test)
    tiles = "".join(f"<div><dt>{name}</dt><dd>{value}<small>{more}</small></dd></div>"
                    for name, value, more in _tiles(findings))  # fmt: skip
    yield f'<dl class="tiles">{tiles}</dl>'
    yield "</header>"


def _verdict(test: SelfTest | None) -> str:
    if test is None:
        return '<p class="verdict none">Converted without a self-test: nothing here was measured on the result.</p>'
    if test.fault is not None:
        return f'<p class="verdict failed">Self-test failed: the model {escape(test.fault)}.</p>'
    return (
        f'<p class="verdict">Self-test passed: {test.nats:.4f} nats from the source, where {test.allowed:g} would '
        "still pass.</p>"
    )


def _tiles(findings: Findings) -> Iterator[tuple[str, str, str]]:
    yield (
        "bits a weight",
        f"{findings.bits:.3f}",
        f"{findings.settings['bits']} asked for; head {findings.head_bits:.2f}",
    )
    yield (
        "weights on disk",
        gigabytes(findings.result_bytes),
        f"the source has {gigabytes(findings.source_bytes)}",
    )
    if (test := findings.test) is not None:
        error = "" if test.score.kl_error is None else f"± {test.score.kl_error:.4f}"
        yield "KL to the source", number(test.nats), f"nats {error}"
        yield "perplexity", number(test.score.perplexity, 2), f"the source has {test.source_perplexity:.2f}"
        yield "same favourite", f"{test.score.top1 or 0.0:.1%}", f"of {test.score.tokens:,} tokens"


# ---- the sections


def _sections(findings: Findings) -> Iterator[str]:
    yield "<h2>Where the bits went</h2>"
    yield (
        "<p>Bits a weight of every matrix, with everything that is stored for it. Layers run from left to right; "
        "matrices whose errors matter more to the model's predictions get more.</p>"
    )
    yield _figure(bits_map(findings).svg(), "Attention is q, k, v, o; the MLP is gate, up, down.")
    if findings.test is not None:
        yield from _errors(findings, findings.test)
    yield from _calibration(findings.calibration)
    yield from _times(findings)
    yield "<h2>Settings</h2>"
    yield _table(
        "How it was converted", ("setting", "value"), [*findings.settings.items(), ("machine", findings.machine)]
    )
    yield "<h2>Every matrix</h2>"
    yield f"<details><summary>{len(findings.matrices)} rows</summary>{_matrix_table(findings)}</details>"


def _errors(findings: Findings, test: SelfTest) -> Iterator[str]:
    yield "<h2>Where the errors are</h2>"
    yield (
        "<p>How far each matrix's output is off, in percent of its length, for the inputs that it gets in the source "
        "model. Where bits were saved, errors are large; what counts is what becomes of them further on. That a matrix "
        "was made to make up for errors of those before it counts as an error here.</p>"
    )
    yield _figure(error_map(findings).svg(), "On held-out text, which no calibration holds.")
    yield "<p>Errors of all layers add up, and the model's own normalization holds them down:</p>"
    yield _figure(drift_chart(test.drift).svg(), "How far the states after each layer are off.")
    yield "<h2>What that does to predictions</h2>"
    yield _figure(
        nats_bars(findings.predicted, test.nats, test.allowed).svg(), "KL divergence from the source, in nats."
    )
    yield f"<p>{_of_prediction(findings)}</p>"
    if test.sample is not None:
        asked = "Asked" if test.sample.is_chat else "Given the beginning"
        yield f"<h2>What it says</h2><p>{asked} “{escape(test.sample.prompt)}”, always taking the likeliest token:</p>"
        yield f"<blockquote>{escape(test.sample.text.strip()) or '(nothing)'}</blockquote>"


def _of_prediction(findings: Findings) -> str:
    if findings.predicted is None:
        return "What options cost was not priced in nats here, or by an earlier run, so that nothing was predicted."
    return (
        "Predicted is the sum of what each layer's bits were priced at on calibration text. It leaves out the head and "
        "takes errors of different matrices to be independent, so it is too low as a figure, but it ranks settings of "
        "the same model. Measured is what the self-test found on its own text; more than what is allowed for this "
        "number of bits fails."
    )


def _calibration(record: Mapping[str, object]) -> Iterator[str]:
    sources = record.get("tokens_by_source")
    parts = {str(name): float(count) for name, count in sources.items()} if isinstance(sources, Mapping) else {}
    yield "<h2>Calibration</h2>"
    yield (
        f"<p>{record.get('rows')} rows of {record.get('length')} tokens, dataset "
        f"<code>{escape(str(record.get('dataset')))}</code>, SHA-256 of the tokens "
        f"<code>{escape(str(record.get('sha256')))}</code>.</p>"
    )
    if parts:
        yield _bar(share_bar(parts, "calibration tokens by source").svg())
        yield _parts_table("Tokens by source", "tokens", parts, "{:,.0f}")


def _times(findings: Findings) -> Iterator[str]:
    yield "<h2>Time</h2>"
    yield f"<p>{duration(sum(findings.seconds.values()))} in all, on {escape(findings.machine)}.</p>"
    yield _bar(share_bar(findings.seconds, "seconds by stage").svg())
    yield _parts_table("Seconds by stage", "seconds", findings.seconds, "{:,.1f}")


def _matrix_table(findings: Findings) -> str:
    rows = [
        (
            str(m.layer),
            m.role if m.count == 1 else f"{m.role} × {m.count}",
            f"{m.num_weights:,}",
            f"{m.bits:.3f}",
            "" if m.error is None else percent(m.error),
        )
        for m in findings.matrices
    ]
    return _table("", ("layer", "matrix", "weights", "bits a weight", "error"), rows, numbers_from=2)


def _foot(findings: Findings) -> str:
    return f"<footer>Written by polybit {escape(findings.version)}.</footer>"


# ---- pieces


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def _bar(svg: str) -> str:
    return f'<figure class="bar">{svg}</figure>'


def _table(caption: str, heads: tuple[str, ...], rows: Sequence[tuple[str, ...]], numbers_from: int = 99) -> str:
    """Cells are text; those from column `numbers_from` on are aligned right."""
    kinds = ["" if column < numbers_from else ' class="n"' for column in range(len(heads))]
    head = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in zip(heads, kinds, strict=True))
    body = "\n".join(
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    named = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{named}<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def _parts_table(caption: str, unit: str, parts: Mapping[str, float], form: str) -> str:
    """What the colours of a bar stand for."""
    total = sum(parts.values()) or 1.0
    rows = "\n".join(
        f'<tr><td><span class="swatch" style="background:{colour_of(i)}"></span>{escape(name)}</td>'
        f'<td class="n">{form.format(part)}</td><td class="n">{part / total:.0%}</td></tr>'
        for i, (name, part) in enumerate(parts.items())
    )
    head = f'<th scope="col"></th><th scope="col" class="n">{unit}</th><th scope="col" class="n">share</th>'
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table>"
