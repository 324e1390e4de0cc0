"""A second small declaration, toy/wide, whose derived run consumes a variant of toy/depth."""

OTHER = """
paper: {title: Toy, authors: Nobody, year: 2026, section: "1"}
question: Is an ensemble of different networks better?
data: {name: cifar10}
train: {steps: 64000, batch_size: 128, lr: 0.1, optimizer: {name: sgd, momentum: 0.9}}
variants:
  wide: {model: {name: plain_cifar, depth: 20}, train: {lr: 0.05}}
  other: {model: {name: plain_cifar, depth: 8}}
derived:
  mixed: {kind: ensemble, members: {wide: 1, toy/depth/plain-20: 2}}
seeds: [0, 1, 2]
scales:
  paper: {}
  smoke: {data: {name: noise}, train: {steps: 12}}
claims:
  - {id: error, of: mixed, metric: test/top1_error_pct, claimed: 9.0, margin: 0.5, source: Table 1}
"""

ONLY_DERIVED = """
paper: {title: Toy, authors: Nobody, year: 2026, section: "1"}
question: Are two better than one?
data: {name: cifar10}
derived: {pair: {kind: ensemble, members: {toy/depth/plain-20: 2}}}
scales: {paper: {}, smoke: {}}
"""
