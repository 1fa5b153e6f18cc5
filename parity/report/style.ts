/** The look of a report: one column, quiet colours, numbers that align; light and dark, and fit to print. */
export const style = `
:root { color-scheme: light dark;
  --ink: #1b1f24; --soft: #5b6570; --faint: #8b949e; --line: #e3e1db; --ground: #faf9f6; --card: #ffffff; --sunk: #f3f1ec;
  --good: #1a7f5a; --good-bg: #e2f2ea; --bad: #b3261e; --bad-bg: #fbe9e7; --warn: #9a6700; --warn-bg: #fdf3d7; --accent: #2f5fb3;
  --heat0: #dcefe6; --heat1: #f5e6b8; --heat2: #f0b98d; --heat3: #c8372d; --same: #2d6f86; --same-ink: #ffffff;
  --s0: #0072b2; --s1: #d55e00; --s2: #009e73; --s3: #b0508f; --s4: #b8860b; --s5: #5c6570; --s6: #56b4e9 }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e9e7e2; --soft: #a5acb5; --faint: #78818b; --line: #30353c; --ground: #121519; --card: #1a1e24; --sunk: #20252c;
  --good: #5fcf9f; --good-bg: #14352a; --bad: #ff8a80; --bad-bg: #43201e; --warn: #e8bd5a; --warn-bg: #3a2f14; --accent: #8db4f5;
  --heat0: #1d3a30; --heat1: #57491c; --heat2: #7c4422; --heat3: #d4483d; --same: #3b8aa5; --same-ink: #071016;
  --s0: #58a9e0; --s1: #f08a4b; --s2: #3fc79a; --s3: #d68ac0; --s4: #dbb244; --s5: #c3c9d0; --s6: #8fcdf2 } }
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { margin: 0 auto; max-width: 68rem; padding: clamp(1.25rem, 4vw, 3.5rem) clamp(1rem, 4vw, 2.5rem) 5rem; color: var(--ink);
  background: var(--ground); font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', sans-serif; font-variant-numeric: tabular-nums }
h1, h2 { font-family: 'Iowan Old Style', Charter, 'Bitstream Charter', 'Source Serif 4', Georgia, serif; font-weight: 600; line-height: 1.15;
  letter-spacing: -.01em; text-wrap: balance }
h1 { font-size: clamp(1.9rem, 5vw, 2.9rem); margin: .35rem 0 .5rem } h2 { font-size: 1.5rem; margin: 0 0 .3rem } h3 { font-size: .95rem; margin: 0 0 .5rem; font-weight: 600 }
section { margin-top: clamp(2.5rem, 6vw, 4rem) } p { margin: .3rem 0 } .lead, figcaption, .note { color: var(--soft); max-width: 46rem; text-wrap: pretty }
.lead { margin-bottom: 1.1rem } figcaption, .note { font-size: .85rem; margin-top: .6rem }
code, .mono { font: .84em/1.5 ui-monospace, 'SF Mono', Menlo, Consolas, monospace; overflow-wrap: anywhere }
header { border-bottom: 1px solid var(--line); padding-bottom: 1.6rem } .sub { color: var(--soft); font-size: 1.05rem }
.verdict { display: inline-flex; align-items: center; gap: .5rem; border-radius: 99px; padding: .28rem .9rem .28rem .7rem; font-weight: 600; font-size: .92rem }
.verdict::before { content: ''; width: .62rem; height: .62rem; border-radius: 50%; background: currentColor }
.pass { color: var(--good); background: var(--good-bg) } .fail { color: var(--bad); background: var(--bad-bg) } .skipped { color: var(--warn); background: var(--warn-bg) }
.facts { display: flex; flex-wrap: wrap; gap: .2rem 1.6rem; margin-top: 1rem; font-size: .85rem; color: var(--soft) } .facts b { color: var(--ink); font-weight: 500 }
.tiles { display: flex; flex-wrap: wrap; gap: 1px; margin-top: 1.8rem; background: var(--line); border: 1px solid var(--line); border-radius: 12px; overflow: hidden }
.tile { flex: 1 1 9.5rem; background: var(--card); padding: 1rem 1.1rem } .tile b { display: block; font-size: 1.65rem; line-height: 1.2; font-weight: 600; letter-spacing: -.02em; white-space: nowrap }
.tile span { color: var(--soft); font-size: .82rem }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19.5rem, 100%), 1fr)); gap: 1rem } .cards.wide { grid-template-columns: repeat(auto-fill, minmax(min(27rem, 100%), 1fr)) }
.card, figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.1rem 1.2rem; min-width: 0 }
.card h3 { display: flex; justify-content: space-between; gap: 1rem; align-items: baseline } .card h3 small { color: var(--soft); font-weight: 400 }
.plot { overflow-x: auto } svg { display: block; width: 100%; height: auto } svg text { fill: var(--soft); font: 12px system-ui, sans-serif } svg text.strong { fill: var(--ink); font-weight: 500 }
.grid { display: grid; gap: 3px; font-size: .74rem } .grid > * { min-width: 0 } .grid .name { color: var(--soft); align-self: center; white-space: nowrap; overflow: hidden; text-overflow: ellipsis }
.grid .name.own { color: var(--ink); font-weight: 500 } .grid .side { text-align: right; padding-right: .45rem } .grid .down { writing-mode: vertical-rl; transform: rotate(180deg); place-self: start center; padding-bottom: .2rem; max-height: 6.5rem }
.heat { aspect-ratio: 1; min-height: 1.5rem; border-radius: 5px; display: grid; place-items: center; color: var(--ink); cursor: default }
.heat.same { background: var(--same); color: var(--same-ink); font-weight: 700 } .heat.over { background: var(--heat3); color: #fff; font-weight: 700 } .heat.none { background: repeating-linear-gradient(45deg, var(--sunk) 0 4px, transparent 4px 8px) }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: 0 0 .9rem; font-size: .84rem; color: var(--soft) } .legend i { display: inline-block; width: .8em; height: .8em; border-radius: 3px; margin-right: .4em; vertical-align: -.04em }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-size: .87rem } th, td { text-align: left; padding: .42rem .9rem .42rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; vertical-align: top }
th { color: var(--soft); font-weight: 500; font-size: .8rem } td.n, th.n { text-align: right } tbody tr:last-child td { border-bottom: 0 } .wrap { display: block; min-width: 15rem; white-space: normal }
details { margin-top: 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: .75rem 1.2rem } details > :last-child { margin-top: .7rem }
summary { cursor: pointer; font-weight: 500; font-size: .92rem } summary::marker { color: var(--faint) }
pre { margin: 0; background: var(--sunk); border: 1px solid var(--line); border-radius: 12px; padding: 1rem 1.2rem; overflow-x: auto; font: .84rem/1.7 ui-monospace, 'SF Mono', Menlo, Consolas, monospace } pre .p { color: var(--faint); user-select: none }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .45rem .8rem; align-items: center; font-size: .86rem } .track { position: relative; height: 1.15rem; background: var(--sunk); border-radius: 5px }
.track i { position: absolute; inset: 0 auto 0 0; border-radius: 5px; background: var(--faint) } .track i.own { background: var(--accent) } .track u { position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--ink) } .track s { position: absolute; top: 50%; height: 2px; margin-top: -1px; background: var(--ink); opacity: .55 }
.pill { display: inline-block; border-radius: 99px; padding: .05rem .6rem; font-size: .78rem; font-weight: 500 }
.seal { border: 1px solid var(--line); border-top: 4px solid var(--accent); border-radius: 12px; background: var(--card); padding: 1.4rem 1.5rem } .seal dl { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.2rem; margin: .9rem 0 0; font-size: .88rem } .seal dt { color: var(--soft) } .seal dd { margin: 0; min-width: 0 }
ol.ledger { list-style: none; margin: 0; padding: 0 0 0 1.1rem; border-left: 2px solid var(--line) } ol.ledger li { position: relative; padding: 0 0 1.1rem .3rem } ol.ledger li::before { content: ''; position: absolute; left: -1.52rem; top: .45rem; width: .6rem; height: .6rem; border-radius: 50%; background: var(--card); border: 2px solid var(--accent) } ol.ledger time { color: var(--soft); font-size: .82rem }
ul.why { margin: .2rem 0 .8rem; padding-left: 1.1rem } footer { margin-top: 4rem; color: var(--faint); font-size: .82rem }
@media (max-width: 34rem) { body { font-size: 15px } .card, figure { padding: .9rem } .bars { grid-template-columns: 1fr max-content; grid-auto-flow: dense; row-gap: .3rem } .bars .track { grid-column: 1 / -1; margin-bottom: .5rem } .bars > .label { grid-column: 1 } .seal dl { grid-template-columns: 1fr; gap: 0 } .seal dd { margin-bottom: .5rem } }
@media print { body { max-width: none } details { break-inside: avoid } section { break-inside: avoid-page } }
`
