rule nas:
    input:
        data=campaigns.prepared,
        distilled=rules.distill.output.distilled,
    output:
        accuracies=layout.nas(PATTERN, "{search}", "{part}"),
    log:
        layout.log(
            "nas",
            *PATTERN.place,
            "{search}",
            "part-{part}",
        ),
    benchmark:
        layout.benchmark(
            "nas",
            *PATTERN.place,
            "{search}",
            "part-{part}",
        )
    conda:
        "../envs/satm.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=480,
        gpu=0,
    params:
        config=campaigns.config,
        options=campaigns.nas_options,
        revision=REVISIONS["nas"],
    shell:
        "python -m satm nas --config {params.config:q} --dataset {wildcards.dataset} --ipc {wildcards.ipc}"
        " --method {wildcards.method} --seed {wildcards.seed} --search {wildcards.search} --part {wildcards.part}"
        " --threads {threads} > {log} 2>&1"


rule nas_real:
    input:
        data=campaigns.prepared,
    output:
        accuracies=layout.nas_real("{dataset}", "{search}", "{part}"),
    log:
        layout.log("nas", "{dataset}", "real", "{search}", "part-{part}"),
    benchmark:
        layout.benchmark("nas", "{dataset}", "real", "{search}", "part-{part}")
    conda:
        "../envs/satm.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=2880,
        gpu=0,
    params:
        config=campaigns.config,
        options=campaigns.nas_real_options,
        revision=REVISIONS["nas"],
    shell:
        "python -m satm nas --config {params.config:q} --dataset {wildcards.dataset} --real --search {wildcards.search}"
        " --part {wildcards.part} --threads {threads} > {log} 2>&1"
