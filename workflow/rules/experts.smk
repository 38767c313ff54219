# The shards of a part are beside it and are not outputs: Snakemake deletes the outputs of a job that it starts again, but an
# interrupted part resumes after its last complete expert.
rule experts_part:
    input:
        data=campaigns.prepared,
        difficulty=campaigns.difficulty,
    output:
        part=layout.experts_part("{dataset}", "{experts}", "{part}"),
    log:
        layout.log("experts", "{dataset}", "{experts}", "part-{part}"),
    benchmark:
        layout.benchmark("experts", "{dataset}", "{experts}", "part-{part}")
    conda:
        "../envs/satm.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=720,
        gpu=0,
    params:
        config=campaigns.config,
        options=campaigns.expert_options,
        revision=REVISIONS["experts"],
    shell:
        "python -m satm experts --config {params.config:q} --dataset {wildcards.dataset} --experts {wildcards.experts}"
        " --part {wildcards.part} --threads {threads} > {log} 2>&1"


rule experts:
    input:
        parts=campaigns.parts,
    output:
        manifest=layout.manifest("{dataset}", "{experts}"),
    log:
        layout.log("experts", "{dataset}", "{experts}", "manifest"),
    benchmark:
        layout.benchmark("experts", "{dataset}", "{experts}", "manifest")
    conda:
        "../envs/satm.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=60,
        gpu=0,
    params:
        config=campaigns.config,
        options=campaigns.expert_options,
        revision=REVISIONS["experts"],
    shell:
        "python -m satm experts --config {params.config:q} --dataset {wildcards.dataset} --experts {wildcards.experts}"
        " --collect > {log} 2>&1"


rule difficulty:
    input:
        data=campaigns.prepared,
        experts=rules.experts.output.manifest,
    output:
        difficulty=layout.difficulty("{dataset}", "{experts}"),
    log:
        layout.log("experts", "{dataset}", "{experts}", "difficulty"),
    benchmark:
        layout.benchmark("experts", "{dataset}", "{experts}", "difficulty")
    conda:
        "../envs/satm.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=240,
        gpu=0,
    params:
        config=campaigns.config,
        options=campaigns.difficulty_options,
        revision=REVISIONS["experts"],
    shell:
        "python -m satm experts --config {params.config:q} --dataset {wildcards.dataset} --experts {wildcards.experts}"
        " --measure-difficulty --threads {threads} > {log} 2>&1"
