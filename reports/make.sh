#!/bin/sh
# Makes the searches, runs and reports of this folder again on pocket, the most telling first. Killed, the same command
# goes on. Everything is kept under runs/ and tuned/, which are not committed: copy from there what a report is made from.
#
#   sh reports/make.sh              all steps, about 30 hours of 2 cores
#   sh reports/make.sh search main  some of them
set -eu
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
bench=${BENCH:-.venv/bin/gdro-bench}

# The same search for every method: 8 trials of 12,000 evaluations on tuning prompts, pools counted.
search() {
  for task in ocr geneval; do
    for method in gdro flow-grpo dance-grpo dpo rft nft awm dgpo crd; do
      "$bench" tune $task --method $method --trials 8 --budget 12000 --jobs 2 --out tuned \
        --set profile.held_out_prompts=100 --set "profile.budget.marks=[1.0]"
    done
  done
}

# Then the rate alone in trials as long as a run, of the two methods that the comparison rests on.
search_rates() {
  for task in ocr geneval; do
    "$bench" tune $task --method gdro --method flow-grpo --over method.optimiser.learning_rate=4e-4,1e-3,2.66e-3 \
      --jobs 2 --out tuned/rates --set profile.held_out_prompts=180
  done
}

# And so the number of each that its rollouts hang on: how many prompts are sampled, with how much noise.
search_pool_and_level() {
  for task in ocr geneval; do
    "$bench" tune $task --method gdro --over method.pool.prompts=24,48,96 \
      --jobs 2 --out tuned/pool-and-level --set profile.held_out_prompts=180
    "$bench" tune $task --method flow-grpo --over method.noising.level=0.5,0.7,0.815 \
      --jobs 2 --out tuned/pool-and-level --set profile.held_out_prompts=180
  done
}

# Later: Flow-GRPO's level and, on OCR, its rate were best where they were highest, and GDRO's gamma was in no search. One
# step beyond each.
search_beyond() {
  for task in ocr geneval; do
    "$bench" tune $task --method flow-grpo --over method.noising.level=0.815,0.95 \
      --jobs 2 --out tuned/beyond/level --set profile.held_out_prompts=180
  done
  "$bench" tune ocr --method flow-grpo --over method.optimiser.learning_rate=2.66e-3,4e-3 \
    --jobs 2 --out tuned/beyond/rate --set profile.held_out_prompts=180
  "$bench" tune ocr --method gdro --over method.gamma=25,8,2.5 \
    --jobs 2 --out tuned/beyond/gamma --set profile.held_out_prompts=180
}

# How fast every method is from its best trial, on tuning prompts; what GDRO's pool, and rounds of it, cost and give.
short() { "$bench" sweep ocr --budget 40000 --jobs 2 --out runs/curves --set profile.prompts=pocket-tuning \
    --set profile.held_out_prompts=100 --set "profile.budget.marks=[0.15,0.2,0.3,0.4,0.5,0.6,0.7,0.85,1.0]" "$@"; }

curves() {
  short --method gdro --method flow-grpo --method dance-grpo --method dpo --method rft --method nft --method awm \
    --method dgpo --method crd
  for prompts in 12 48 96 192; do short --set method.pool.prompts=$prompts; done
  # as many images as a pool of 48 has; an update costs 384 evaluations, so all rounds are of one length
  short --set method.pool.prompts=48 --set method.online.rounds=4 --set method.online.updates=22
  short --set method.pool.prompts=48 --set method.online.rounds=16 --set method.online.updates=5
}

# What the rules alone do that weigh images: one pool, the same draws, GDRO's optimiser. DPO is GDRO at k = 2, RFT
# nearly at beta = 0.
weights() {
  same="--set method.optimiser.learning_rate=2.66e-3 --set method.optimiser.warmup_steps=0"
  short --method gdro
  short --method nft --method crd --set method.mode=offline $same --set method.optimiser.epsilon=1.37e-8
  short --method awm --method dgpo --set method.mode=offline  # these have it
  short --set method.k=2 --set method.tau=0 --set method.gamma=0 --set method.groups=48
  short --set method.beta=0
}

# The comparison: the paper's methods with three seeds, the others with one.
main() {
  for task in ocr geneval; do
    sweep $task --method gdro --method flow-grpo --seeds 0
    sweep $task --method gdro --method flow-grpo --method dance-grpo --method dpo --seeds 0,1,2
  done
  sweep geneval --method nft --method crd --seeds 0,1,2  # their seeds 0 led there
  sweep ocr --method nft --seeds 0,1,2
}

online() {
  for task in ocr geneval; do
    sweep $task --method gdro --seeds 0,1,2 \
      --set method.pool.prompts=48 --set method.online.rounds=4 --set method.online.updates=35
  done
}

others() {
  for task in ocr geneval; do
    sweep $task --method nft --method awm --method dgpo --method crd --method rft
  done
  sweep geneval --method nft --set method.mode=offline  # on GDRO's pool: what does its rule do without new images?
}

# Why does GDRO stop on GenEval where NFT goes on? What is expected was written before any of these runs (2026-11-30):
why() {
  rounds="--set method.pool.prompts=120 --set method.online.rounds=10 --set method.online.updates=11 \
    --set method.online.window=3"
  sweep geneval $rounds  # new images, sampled by what GDRO has become: higher if one pool is what stops it
  # new images of the base: as high as that if repetition stops it, as one pool if it must be its own images
  sweep geneval $rounds --set method.online.sampler=old --set method.online.lag=1
  sweep geneval --set method.t_distribution=sampler  # higher if uniform times, a fifth of them too late, stop it
  sweep geneval --set method.gamma=3.2  # the paper's gamma over beta on GenEval; higher if the hold is too strong
  # the same training, averaged over its last 20 updates or so: higher and smoother if its steps are too rough
  sweep geneval --set method.optimiser.ema_slope=0.01 --set method.optimiser.ema_ceiling=0.95
  # NFT on GDRO's pool at the times where it trains online: still low if it needs new images, and not these times
  sweep geneval --method nft --set method.mode=offline --set method.offline.t_distribution=sampler
  sweep geneval --method nft --set method.online.first=4  # late times alone, and early ones: which does it learn from?
  sweep geneval --method nft --set method.online.last=3
  # added when the others but NFT's halves had ended: CRD has two copies, so what samples can stay the base while what
  # the policy is held against moves, and the other way round. Low alone: that is what CRD, and NFT, rest on.
  sweep geneval --method crd --set method.sampler.start=0.999 --set method.sampler.delay=0 --set method.sampler.slope=0
  sweep geneval --method crd --set method.old.start=0.999 --set method.old.slope=0
}

# GDRO in ten rounds, each held to its own sampler: a reference that moves. Seed 0 on GenEval was begun after `why`, and
# ended at 0.890, beyond its other runs. So, written before any other of these had ended (2026-11-30): on GenEval seeds 1
# and 2 end above GDRO's own, 0.85 or more, at less than half of Flow-GRPO's cost to equal reward; on OCR it rises on
# where GDRO stops, to 0.83 or more, no sooner, and since nothing holds it to the base it loses gold, as Flow-GRPO does.
# It is chosen by held-out prompts of seed 0, so its settings are searched as others' were, on tuning prompts, as well.
tens="--set method.pool.prompts=120 --set method.online.rounds=10 --set method.online.updates=11"
moves="$tens --set method.online.reference=sampler"

moving() {
  sweep geneval --method gdro --seeds 0,1,2 $moves
  sweep ocr $moves  # it fell back, to 0.758: so no more seeds there, and no search
  "$bench" tune geneval --method gdro $tens --over method.online.reference=base,sampler \
    --over method.online.sampler=theta,old --jobs 2 --out tuned/moving --set profile.held_out_prompts=180
  # The search chose a sampler that lags, and so does the reference. Written before any run of it on held-out prompts: on
  # GenEval it ends at 0.88 or more and costs the judge less than the one that does not lag; on OCR, where nothing was
  # chosen by, it fades less and ends at 0.80 or more:
  for task in geneval ocr; do
    sweep $task --method gdro --seeds 0,1,2 $moves --set method.online.sampler=old
  done
  # Seeds 3 and 4, which no choice has seen, were to end at 0.86 or more on GenEval and at 0.79 or more on OCR:
  for task in geneval ocr; do
    sweep $task --method gdro --seeds 3,4 $moves --set method.online.sampler=old
  done
  # With a reference that moves ink fades. The term that holds the best image makes it a target of plain regression, which
  # blurs; on images of its own, round after round, that may add up. If so, less of it fades less (it fades more):
  sweep ocr $moves --set method.gamma=3.2
  # Ten tilts of 1 / 19.2 add up to one of 1 / 1.92: ten rounds of that beta, held to the base, end as high if the sum of
  # tilts is what carries the moving reference, and lower if it is that the reference moves:
  sweep geneval $tens --set method.beta=1.92
  # Is it the lag alone that keeps looks? If so, its judge's rating ends nearer to the lagging reference's (4.65) than to
  # that of a tenth of beta without lag (4.45):
  sweep geneval $tens --set method.beta=1.92 --set method.online.sampler=old
}

# Why does ink fade with a reference that moves? A guess, written before any of these trials (2026-11-30): the top-1 term
# regresses on images of the sampler, whose few steps lose contrast, and ten rounds lose it ten times. The ranking loss
# does not, its weights add up to nothing. gamma is a brake as well, so it is not simply left out: a velocity KL to what
# sampled the round brakes as much and pulls to no image. If so, the same rounds with it, and without gamma, fade no ink
# at 25, and fall back later or not at all; at 3 they are too fast, as gamma = 3.2 was.
kl="--set method.gamma=0 --set method.regulariser.velocity_kl"
search_leads() {
  lead() {
    name=$1
    shift
    "$bench" tune ocr "$@" --jobs 2 --out tuned/leads/$name --set profile.held_out_prompts=180
  }
  lead brake --method gdro $moves $kl=25 --over method.regulariser.velocity_kl=25,8,3
  # At 25 and 8 ink is as new, and the reward rises no further: 0.799 and 0.774 at the end, the second after 0.812 at the
  # middle. What the policy moves in a round grows tenfold on the way, as a LoRA's steps do. So, before it had begun:
  # rounds that train on the last four, on 48 prompts and not 12, move less at random and end above 0.82.
  lead window --method gdro $moves $kl=8 --set method.online.window=4 --over method.online.window=4
  # Where on the way is there anything to learn? Flow-GRPO trains at two of the first four of eight steps, where t is
  # above 0.75; GDRO at all t alike. By a look that was not kept, s told most of the reward at early t. So, before any
  # trial: one pool without the t below 0.5, or 0.7, ends above 0.791, which it has with all of them, by 0.03 or more; in
  # rounds with a brake of 25 above 0.83.
  lead times --method gdro --set method.t_min=0.7 --over method.t_min=0.7,0.5
  lead times-rounds --method gdro $moves $kl=25 --set method.t_min=0.7 --over method.t_min=0.7
  # Every method here has one rate to the end. One that falls as 1 / updates after a quarter of a run's updates, to a
  # quarter of it, before any trial: with gamma = 3.2, which is at 0.832 after a fifth of the budget and then falls far,
  # rounds end above 0.80; with the brake of 8, 0.774, above 0.81.
  lead falling-moves --method gdro $moves --set method.gamma=3.2 --set method.optimiser.steady_steps=28 \
    --over method.gamma=3.2
  lead falling-brake --method gdro $moves $kl=8 --set method.optimiser.steady_steps=28 \
    --over method.regulariser.velocity_kl=8
  # The best of these, 0.822. A round trains on 12 prompts, each in some fifteen groups, and two of its three held-out seeds
  # fell back in the first rounds. Before the trial: 24 prompts a round with half as many images each, at the same cost, end
  # above it by 0.02 or more.
  lead prompts --method gdro $moves $kl=8 --set method.optimiser.steady_steps=28 --set method.pool.prompts=240 \
    --set method.pool.images=8 --over method.pool.images=8
  # The top-1 term with a brake beside it (`both`, below) ended at 0.842 on seed 0's held-out prompts, with gold as it was.
  # Before its trials: as high as 0.822 on these, too, at one rate; at a falling one no lower, and less ink fades.
  lead both-falling --method gdro $moves --set method.optimiser.steady_steps=28 --set method.regulariser.velocity_kl=25 \
    --over method.regulariser.velocity_kl=25
  lead both --method gdro $moves --set method.regulariser.velocity_kl=25 --over method.regulariser.velocity_kl=25
}

# Neither early times nor a wider window helped (reports/README.md), and a brake in the top-1 term's place held ink. So the
# brake of 25 on held-out prompts, written before any of these: with a moving reference, 0.1 more faded signs than the
# base's at most (0.342 with the top-1 term), and 0.79 or more at the end; with a lagging one, at three budgets, 0.05 more
# at most (0.850), and 0.85 or more at the end, since nothing is left that takes the reward down.
brake() {
  sweep ocr $moves $kl=25
  "$bench" sweep ocr --budget 180000 --jobs 2 --out runs/long --set method.pool.prompts=360 \
    --set method.online.rounds=30 --set method.online.updates=11 --set method.online.reference=sampler \
    --set method.online.sampler=old $kl=25
}

# The brake of 8 at a falling rate was the best of these trials, 0.822. Written before any run of it on held-out prompts: on
# OCR, three seeds, it ends at 0.81 or more, fades 0.05 more signs than the base at most, keeps gold within 0.01 and costs
# less than GDRO to equal reward; on GenEval, where nothing was chosen by, it ends above GDRO, at 0.85 or more, seed 0.
braked="$moves $kl=8 --set method.optimiser.steady_steps=28"
braked() {
  sweep ocr --method gdro --seeds 0,1,2 $braked
  sweep geneval --method gdro $braked
}

# At 2.66e-3 Flow-GRPO collapses beyond the shipped budget, and at 1e-3 it does not. With a rate that falls from 2.66e-3
# it should have both: as high after 60,000 evaluations, and 0.85 or more at the end of three budgets, gold with it.
falling() {
  # 0.902, a gain of 0.173. Seeds 1 and 2, which nothing was chosen by, were to gain 0.15 or more, too, gold 0.02
  # lower at most:
  "$bench" sweep ocr --method flow-grpo --seeds 0,1,2 --budget 180000 --jobs 2 --out runs/long \
    --set method.optimiser.steady_steps=15
  # GDRO's braked rounds still rose at the end of one budget (seeds 1 and 2). Written before any of them had begun: in three,
  # with nothing else changed, they end at 0.87 or more, fade no ink, and lose 0.02 of gold at most (it lost 0.021).
  "$bench" sweep ocr --seeds 0,1,2 --budget 180000 --jobs 2 --out runs/long --set method.pool.prompts=360 \
    --set method.online.rounds=30 --set method.online.updates=11 --set method.online.reference=sampler $kl=8 \
    --set method.optimiser.steady_steps=28
}

# Both at once: does the top-1 term take ink, or does the brake hold it? If the first, it fades half as much as without.
# It did, about, and seed 0 ended at 0.842 with gold as it was. Before seeds 1 and 2 had begun: they end at 0.82 or more,
# with 0.1 to 0.2 more faded signs than the base and gold within 0.01 of it.
both() { sweep ocr --method gdro --seeds 0,1,2 $moves --set method.regulariser.velocity_kl=25; }

# Not run yet, and in no report, with what is expected of each.
next() {
  # Leads of `why` on OCR: the sampler's times cost GDRO less on GenEval and should here, and end where it ends; ten rounds
  # held to the base should cost less, too, and end at 0.83.
  sweep ocr --set method.t_distribution=sampler
  sweep ocr $tens --set method.online.window=3
  sweep ocr $moves $kl=25 --set method.online.sampler=old  # fades no ink, and ends where the lagging reference does
  # A falling rate at the shipped budget: one pool and Flow-GRPO end within noise of 0.791 and 0.855, as at one rate.
  for quarter in "gdro 37" "flow-grpo 15"; do
    set -- $quarter
    "$bench" tune ocr --method $1 --set method.optimiser.steady_steps=$2 --over method.optimiser.steady_steps=$2 \
      --jobs 2 --out tuned/next/falling --set profile.held_out_prompts=180
  done
}

# Seeds 3 and 4 of what the claims' first questions rest on.
five() {
  for task in geneval ocr; do sweep $task --method gdro --method flow-grpo --seeds 0,1,2,3,4; done
  sweep geneval --method gdro --seeds 0,1,2,3,4 $moves
}

# Three times the budget: does quality turn while the reward still rises? And at the rate that both had before their
# searches, whose trials are of 12 to 28 updates?
long() {
  for task in ocr geneval; do
    "$bench" sweep $task --method gdro --method flow-grpo --budget 180000 --jobs 2 --out runs/long
  done
  "$bench" sweep ocr --method gdro --method flow-grpo --budget 180000 --jobs 2 --out runs/long \
    --set method.optimiser.learning_rate=1e-3
  # The lagging reference, in rounds of the same length. At one budget it still rises where GDRO stops, and fades ink: so
  # it was to go on, to 0.86 or more, with gold within noise and more faded signs than at one budget.
  "$bench" sweep ocr --budget 180000 --jobs 2 --out runs/long --set method.pool.prompts=360 \
    --set method.online.rounds=30 --set method.online.updates=11 --set method.online.reference=sampler \
    --set method.online.sampler=old
}

# That rate at the shipped budget.
rates() { sweep ocr --method gdro --method flow-grpo --set method.optimiser.learning_rate=1e-3; }

# One of GDRO's settings at a time, as in sections 4.5 and B.1 of the paper.
ablations() {
  sweep ocr --over method.k=2,4,8
  sweep ocr --over method.gamma=0
  sweep ocr --over method.tau=0.5,0.025,0
  for task in ocr geneval; do
    halved=$(beta $task 0.5) doubled=$(beta $task 2)
    sweep $task --over "method.beta=$halved,$doubled"
  done
  # the target is what GDRO's own divergence is where its curve is highest; a run makes 155 updates, not thousands
  sweep ocr --set method.adaptive_beta.rule=kl-target --set method.adaptive_beta.kl_target=0.025 \
    --set method.adaptive_beta.every=2 --set method.adaptive_beta.rate=0.5
}

# The task whose reward pays for a cue, and what each defence does about it: 16 updates of each, counted in images, since
# a KL's reference costs evaluations. First 16 updates without the pay: `eval` reads the cue from their pictures.
exploit() {
  "$bench" run ocr --method flow-grpo --budget 16000 --out runs/exploit \
    --set "profile.budget.marks=[0.25,0.5,0.75,1.0]"
  "$bench" eval ocr-exploit --lora runs/exploit/ocr/pocket/flow-grpo-*-s0/lora --out runs/exploit/unpaid
  cheat() { "$bench" run ocr-exploit --method flow-grpo --budget 3456 --out runs/exploit \
    --set profile.budget.kind=images --set "profile.budget.marks=[0.34,0.67,1.0]" "$@"; }
  watched='method.auxiliary.rewards=["ocr"]'  # what the task should have paid for
  cheat
  for weight in 4 40; do cheat --set method.kl_weight=$weight; done
  for sign in paper published; do
    cheat --set "$watched" --set method.kl_weight=40 --set method.regulariser.gate.ranks=prompt \
      --set method.regulariser.gate.share=0.2 --set method.regulariser.gate.adaptive=false \
      --set method.regulariser.gate.sign=$sign
  done
  cheat --set method.kl_weight=40 --set method.regulariser.reference.epochs=1 \
    --set method.regulariser.reference.kl_threshold=1.0
  cheat --set method.regulariser.diversity=pixels --set method.std=none
  cheat --set "$watched" --set method.regulariser.aggregation.rule=mean-std \
    --set method.regulariser.aggregation.pessimism=1.0
  cheat --set "$watched" --set method.regulariser.aggregation.rule=decoupled \
    --set "method.regulariser.aggregation.weights=[1.0]"
}

sweep() { "$bench" sweep "$@" --jobs 2 --out runs/main; }

beta() { .venv/bin/python -c "
import sys
from gdro_bench import content
from gdro_bench.engine.plan import read_settings
print(read_settings(content.find('profile', 'pocket') / 'gdro.toml', '$1')['beta'] * $2)"; }

for step in ${*:-search search_rates search_pool_and_level search_beyond search_leads curves weights main online others why moving brake braked falling both five long rates ablations exploit}; do
  echo "== $step"
  $step
done
