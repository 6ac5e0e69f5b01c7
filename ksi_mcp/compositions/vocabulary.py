"""What people call the ways in which agents work together: a small list, so that other words find the same pattern.

A purpose has cues. `strong` ones say it alone; `medium` ones say it where nothing says otherwise; `weak` ones only
count beside others. A cue of several words must stand in the text in that order. They are compared by their stems,
so one form of a word is enough. The list knows purposes, not the names of patterns: a pattern has the purposes
whose cues its own name, tags and description hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Purpose:
    """What a pattern may be for. Cues are divided by commas."""

    name: str
    strong: str
    medium: str = ""
    weak: str = ""


PURPOSES: Final[tuple[Purpose, ...]] = (
    Purpose(
        name="tournament",
        strong="""tournament, competition, compete, contest, contestant, bake off, bakeoff, shootout, showdown,
            knockout, knock out, elimination, head to head, playoff, bracket, championship, champion,
            pairwise, winner takes all, against each other, against one another, pit, best of breed, beauty
            contest, round robin, battle, duel, face off, arena, elo, gauntlet, survival of the fittest, best
            of n, vie, outdo, league, hackathon, ab test, side by side comparison""",
        medium="""compare, rank, ranking, winner, winning, candidate solutions, competing, rival, pick the best,
            choose the best, select the best, find the best, keep the best, best of, best one, which is
            better, which is best, which is strongest, strongest, superior, best version, best solution, best
            approach, outperform, performs best, different approaches, several approaches, several solutions,
            several versions, alternative solutions, alternative versions, multiple solutions, multiple
            attempts, best attempt, selection, variants, leaderboard, benchmark, matchup, side by side, is
            best, is the best, are best, pick one, choose one, which one should, should win, top performing,
            best performing, finalist, shortlist, try several, test several, evaluate several, several
            candidates, many variants, comparison, tied, outcompete, choose the strongest, most convincing""",
        weak="""best, better, alternative, candidate, judge, blind, score, evaluate, attempt, different, style,
            solution""",
    ),
    Purpose(
        name="debate",
        strong="""debate, argue, argument, devil's advocate, pros and cons, pro and con, pro and contra, for and
            against, arguments for, arguments against, both sides, two sides, opposing views, opposing
            positions, opposing sides, rebuttal, rebut, proposition, opponent, proponent, counterargument,
            counter argument, steelman, case for, case against, prosecution, thesis, antithesis, moot court,
            advocates, polemic, dialectic, argue it out, make the case, challenge my, opposing viewpoints,
            counterpoint, point counterpoint, both perspectives, for or against, cross examine, refute,
            proponents and critics, supporters and opponents, discuss whether, contrarian""",
        medium="""opposing, defend, verdict, advocate, argumentation, controversy, controversial, courtroom, trial,
            contra, adversarial, arbiter, persuade, convince, dispute, pros, cons, clash, sides, versus,
            motion, dilemma, challenge, belief, opposition, philosopher, contested, provocative, two views,
            moral, supporters""",
        weak="""judge, against, opinion, position, case, attack, oppose, whether, decide, should, moderator,
            discussion, discuss""",
    ),
    Purpose(
        name="consensus",
        strong="""consensus, agreement, agree on, delphi, unanimous, unanimity, common ground, planning poker, vote,
            voting, ballot, quorum, committee, converge, majority, compromise, jury, reach a decision, shared
            decision, joint decision, collective decision, group decision, panel of experts, expert panel,
            council, wisdom of the crowd, ensemble vote, settle on, reconcile, collective decision making,
            jointly decide, decide jointly, decide together, deliberate, deliberation, concur, common
            position, joint recommendation, aggregate opinions, group estimate, buy in, sign up to, reach
            agreement""",
        medium="""agree, panel, moderated, shared, jointly, estimate, forecast, story points, independent opinions,
            several opinions, second opinion, independent views, opinions, poll, minority, dissent, aligned,
            alignment, decide together, make a decision, mediate, unite, self consistency, harmonise,
            collective, several experts, independent estimators, conflicting stakeholders, common, unify,
            shared view, mutual""",
        weak="""decide, decision, opinion, independent, expert, together, discuss, perspective, stakeholder,
            predict, several, estimate how""",
    ),
    Purpose(
        name="review",
        strong="""review, reviewer, proofread, critique, critic, quality control, quality gate, quality assurance,
            sign off, signs off, feedback rounds, approve, approval, approver, peer review, code review,
            revise, revision, edit, editor, refine, refinement, iterate until, write and review, draft and
            review, until it passes, until approved, rework, self refine, polish, second pair of eyes, quality
            check, proof reading, look over, suggest improvements, check for mistakes, checked for, ready to
            submit, before submission""",
        medium="""draft, drafter, feedback, iterate, improve, correct, corrected, checked by, gets checked, sent
            back, send it back, findings, objection, quality, audit, inspect, good enough, before it goes out,
            before sending, before publishing, before it is published, publish, go over, proof, pass a,
            iteration, release, pull request, acceptance, mistakes, before merging, feedback on, comments on,
            constructive, verify, go through my, get it reviewed""",
        weak="""check, write, writing, compose, produce, announcement, document, letter, report, article, essay,
            text, author, manual, errors, submit, style, improvements""",
    ),
    Purpose(
        name="pipeline",
        strong="""pipeline, assembly line, sequential, sequence, step by step, multi stage, multistage, staged,
            chain of agents, handoff, hand off, hand over, one after another, one after the other, in stages,
            in sequence, relay, waterfall, output of one, prompt chain, chaining, workflow, conveyor, each
            passing, multi step, in order, stage by stage, step after step""",
        medium="""then, chain, in a row, passing on, passes on, next one, etl, in turn, steps, brief, draft,
            drafter, from brief, validation, transformation, transform""",
        weak="""first, stage, write, writing, step, last, next, second, third, document, content, publish, blog,
            editor, finished, process, through""",
    ),
    Purpose(
        name="research",
        strong="""research, literature survey, literature review, survey, investigate, investigation, find out, fact
            finding, map reduce, mapreduce, state of the art, gather evidence, gather information, collect
            information, deep dive, desk research, market study, background check, what is known, what do we
            know, dossier, synthesise, synthesis, look into, dig, split into parts, in parallel, parallel,
            overview, divide and conquer, fan out, scatter gather, due diligence, summarise, report on,
            compile, competitive landscape, competitive analysis, competitor analysis, market research,
            background research, systematic review, meta analysis, multiple sources, many sources, look at the
            evidence, effects of, collect facts""",
        medium="""study, summary, explore, exploration, sources, evidence, findings, look up, combine, merge, parts,
            learn about, split, divide, aggregate, collect, gather, large documents, interviews, history,
            causes, subquestions, information, literature, among several, read, scout, browse, fact checked,
            landscape, compilation, trends, papers, background, effects, whitepaper, information about, find
            information, read up""",
        weak="""analyse, report, find, check, material, know, relevant, answer, competitor, market, customers,
            how, why, other, question, knowledge, facts""",
    ),
    Purpose(
        name="triage",
        strong="""triage, prioritise, prioritize, priority, classify, classification, categorise, categorize,
            dispatch, dispatcher, route to, route each, routing requests, urgency, severity, inbox, assign
            tickets, support tickets, each ticket, helpdesk, help desk, sort by, escalate, escalation, assign
            each, backlog, intake, incoming, bug reports, alert, forward them, order by, how serious,
            responsible, right department, right team, right person, switchboard, mail sorting, most urgent,
            what comes first, seen first, comes first, dealt with first, first level support, to the correct,
            to the right, to the appropriate, into categories, sort emails, route customer""",
        medium="""ticket, urgent, route, assign, sort, filter, queue, critical, emergency, serious, screen,
            duplicates, distribute, bucket, incident, complaint, forward, department, most important,
            requests, tag, hand each, alarm, label, matters, dealt with, handle, handled, who should,
            specialist depending, important, importance, patients, leads, appropriate, intake, categories,
            customer questions, notifications, spam""",
        weak="""support, customer, issue, report, item, right, decide, order, today, send, bug, email, request,
            matter, first, messages, arrive, correct""",
    ),
    Purpose(
        name="team",
        strong="""self organising, self organizing, self organised, self organized, organises itself, organizes
            itself, organise themselves, organize themselves, organise itself, organize itself, self managing,
            self managed, autonomous team, swarm, emergent, emerge, decentralised, decentralized, without a
            boss, without a leader, leaderless, dynamic team, adaptive team, rewire, forming its own, form
            their own, bring in specialists, specialists when needed, experts on demand, on demand, coordinate
            without, coordinate themselves, by themselves, self directed, self assembling, peer to peer,
            stigmergy, self healing, own roles, among themselves, between themselves, task force, ad hoc team,
            self governing, self selected, reorganise, reorganises, team of specialists, group of specialists,
            work out together, decide their own""",
        medium="""autonomous, team, dynamic, adaptive, specialist, several angles, different angles, many angles,
            perspectives, analyst, analyse, analysis, collaboration, collaborate, coordinator, coordinate,
            lenses, risks, opportunities, examine, who needs what, weaknesses, adds experts, adapt, group of,
            call for help, understanding a, dynamically, multidisciplinary, cross functional, team of experts,
            team of agents, roles, learns about""",
        weak="""several, expert, structure, complex, complicated, legacy, group, architecture, chances, angle,
            findings, together, work out, system""",
    ),
    Purpose(
        name="brainstorm",
        strong="""brainstorm, ideation, ideate, creative concepts, generate ideas, come up with, mind map, idea
            generation, divergent""",
        medium="""ideas, creative, creativity, concepts, inventive, imagine, wild, names for, inspiration, suggest
            names""",
        weak="idea, invent, theme, name, new, suggest",
    ),
    Purpose(
        name="translation",
        strong="""translate, translation, translator, localise, localize, localization, localisation, back
            translation, multilingual""",
        medium="""language, bilingual, english, german, french, spanish, portuguese, italian, japanese, chinese,
            russian, arabic""",
        weak="meaning, nuance, strings",
    ),
    Purpose(
        name="red_team",
        strong="""red team, red teaming, jailbreak, penetration test, pentest, attacker, exploit, threat model,
            attack surface, hack, break into, be broken, abuse case, vulnerability scan, blue team""",
        medium="""attack, security, vulnerability, malicious, hostile, insider, threat, holes, weakness, break,
            stress test, breach""",
        weak="risk, adversarial, defend, defender, abuse, plan",
    ),
    Purpose(
        name="teaching",
        strong="""teach, tutor, tutoring, lesson, pupil, homework, quiz, socratic, explain to me, learn about,
            coach, mentor, curriculum""",
        medium="""learn, explain, understanding, student, exam, education, learning, train me, learner, course,
            practise""",
        weak="understand, test, questions, daughter, son, help",
    ),
    Purpose(
        name="planning",
        strong="""roadmap, project plan, work breakdown, decompose, decomposition, itinerary, milestone, schedule
            the, plan the""",
        medium="plan, planning, planner, schedule, steps to, strategy, goals, tasks, subtasks, timeline",
        weak="organise, project, prepare, next",
    ),
    Purpose(
        name="delegation",
        strong="""delegate, delegation, manager and workers, orchestrator and workers, supervisor, hierarchy,
            hierarchical, subordinates""",
        medium="manager, boss, lead, workers, oversee, supervise, assign work, chain of command",
        weak="split, team, assign",
    ),
    Purpose(
        name="negotiation",
        strong="negotiate, negotiation, bargain, bargaining, haggle, settlement, auction, bidding, bid",
        medium="offer, deal, concession, mediator, terms, contract",
        weak="price, party, agree, compromise",
    ),
    Purpose(
        name="interview",
        strong="""interview candidates, job interview, interviewer, questionnaire, hiring, recruit, elicitation,
            elicit requirements""",
        medium="interview, applicants, requirements, respondents, persona",
        weak="questions, candidate, ask",
    ),
    Purpose(
        name="simulation",
        strong="simulate, simulation, role play, roleplay, war game, wargame, tabletop exercise, rehearse, scenario",
        medium="scenarios, what if, play through, act out, game, actors, characters",
        weak="play, imagine, model",
    ),
    Purpose(
        name="coding",
        strong="""refactor, implement, debug, unit tests, pair programming, codebase, software development,
            programming, bug fix, compile""",
        medium="""code, coding, test, tests, function, patch, migrate, migration, developer, software, bug, program,
            feature""",
        weak="fix, build, script, repository, api",
    ),
    Purpose(
        name="diagnosis",
        strong="""root cause, diagnose, diagnosis, troubleshoot, post mortem, postmortem, outage, incident response,
            war room, forensic""",
        medium="incident, failure, cause, malfunction, symptom, hypothesis, hypotheses, why did",
        weak="problem, error, broken, fix",
    ),
    Purpose(
        name="monitoring",
        strong="""monitor, monitoring, watch for, keep an eye, observe, surveillance, watchdog, track changes,
            anomaly, anomalies""",
        medium="watch, detect, metrics, health, drift, continuously, notify",
        weak="check, regularly, alert",
    ),
    Purpose(
        name="extraction",
        strong="""extract, extraction, transcribe, scrape, parse, structured data, fill the table, data entry,
            annotate, annotation""",
        medium="table, fields, invoices, records, spreadsheet, clean, cleaning, normalise, dataset",
        weak="data, from, list, document",
    ),
    Purpose(
        name="evolution",
        strong="""evolve, evolutionary, genetic, mutate, mutation, hill climbing, optimise, optimize, optimisation,
            self improving""",
        medium="generation, fitness, improve over time, search for better, variation, tune, experiment, parameters",
        weak="improve, better, population, parent",
    ),
    Purpose(
        name="moderation",
        strong="""moderate comments, content moderation, policy violation, spam, compliance check, safety check,
            censor, toxic""",
        medium="compliance, policy, guideline, harmful, flag, regulation",
        weak="check, rule, filter",
    ),
    Purpose(
        name="storytelling",
        strong="""story, novel, screenplay, fiction, storytelling, narrative, plot, poem, collaborative writing,
            script for""",
        medium="chapter, character, dialogue, scene, creative writing, author",
        weak="write, writing, creative",
    ),
)

ERRANDS: Final = """send a, send an, send my, send him, send her, text my, email my, call my, book, reserve, remind,
    buy, purchase, play, restart, reboot, delete, ping, upload, download, install, uninstall,
    transfer, pay, dial, phone, open, close, resize, convert, turn on, turn off, switch on, switch
    off, set an alarm, set a timer, sing, cook, order two, order a, order some, start the, stop the,
    calculate, multiply, rename, copy, print, charge, mute, unmute, navigate, drive, show me the
    time, connect, log in, sign in, subscribe, unsubscribe, cancel"""
"""What a task begins with that one tool call does, and no team of agents."""

QUESTIONS: Final = """what is, what was, what time, what s, who is, who was, who won, who are, when is, when was, when
    did, where is, where are, how many, how much, how do i, how old, how far, how long is, how warm,
    how tall, how big, what colour, what day"""
"""What a question begins with that one answer settles, unless it says outright what kind of work is wanted."""
