"""The style sheet of the report's page."""

from search.figures.style import FONT

STYLE = f"""
:root {{ color-scheme: light; }}
body {{ max-width: 700px; margin: 2.5rem auto; padding: 0 1rem; color: #1f2328; background: white;
  font: 15px/1.55 {FONT}; }}
h1 {{ font-size: 1.9rem; font-weight: 650; margin: 0 0 1rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.1rem; font-weight: 650; margin: 2.4rem 0 .4rem; }}
.quiet, figcaption, dt {{ color: #59636e; font-size: 13px; }}
.quiet {{ margin: 0; }}
.facts {{ display: grid; grid-template-columns: repeat(4, auto); gap: .5rem 1.5rem; margin: 0 0 1.4rem;
  padding: .8rem 0; border: solid #d1d9e0; border-width: 1px 0; }}
dd {{ margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; }}
ul {{ padding-left: 1.2rem; margin: .4rem 0; }}
li {{ margin: .35rem 0; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; vertical-align: top; padding: .28rem .8rem .28rem 0; border-bottom: 1px solid #e4e7eb;
  white-space: pre-line; }}
td:first-child {{ white-space: nowrap; }}
td:last-child {{ overflow-wrap: anywhere; }}
th {{ color: #59636e; font-weight: 500; border-bottom-color: #9aa4af; }}
td.number, th.number {{ text-align: right; padding: .28rem 0 .28rem .8rem; white-space: nowrap; }}
pre, code {{ font: 12.5px/1.5 ui-monospace, 'SF Mono', Menlo, Consolas, 'Liberation Mono', monospace; }}
pre {{ background: #f6f8fa; padding: .8rem 1rem; overflow-x: auto; }}
figure {{ margin: 0; break-inside: avoid; }}
figcaption {{ margin-bottom: .6rem; }}
@page {{ margin: 12mm; }}
@media print {{ body {{ margin: 0 auto; padding: 0; }} h2 {{ break-after: avoid; }} pre {{ white-space: pre-wrap; }} }}
@media (max-width: 560px) {{ .facts {{ grid-template-columns: repeat(2, auto); }} }}
"""
