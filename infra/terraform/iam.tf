# What oral_ray calls, no more (tests/test_infra.py reads the calls out of the code and compares).
data "aws_iam_policy_document" "store" {
  # Without a condition on s3:prefix: S3 answers 404 for a missing object only to who may list; others are told 403,
  # and a store that cannot tell "missing" from "forbidden" is of no use.
  statement {
    sid       = "List"
    actions   = ["s3:ListBucket", "s3:ListBucketMultipartUploads"]
    resources = [aws_s3_bucket.store.arn]
  }

  statement {
    sid = "Objects"
    actions = [
      "s3:AbortMultipartUpload",
      "s3:DeleteObject",
      "s3:GetObject",
      "s3:PutObject",
    ]
    resources = ["${aws_s3_bucket.store.arn}/${var.prefix}/*"]
  }

  dynamic "statement" {
    for_each = aws_sqs_queue.events
    content {
      sid       = "Events"
      actions   = ["sqs:DeleteMessage", "sqs:ReceiveMessage"]
      resources = [statement.value.arn]
    }
  }
}

data "aws_iam_policy_document" "trust" {
  statement {
    actions = ["sts:AssumeRoleWithWebIdentity"]
    principals {
      type        = "Federated"
      identifiers = [var.oidc_provider_arn]
    }
    condition {
      test     = "StringEquals"
      variable = "${local.oidc_issuer}:sub"
      values   = [for account in var.service_accounts : "system:serviceaccount:${var.namespace}:${account}"]
    }
    condition {
      test     = "StringEquals"
      variable = "${local.oidc_issuer}:aud"
      values   = ["sts.amazonaws.com"]
    }
  }
}

locals {
  oidc_issuer = split("oidc-provider/", var.oidc_provider_arn)[1]
}

resource "aws_iam_role" "store" {
  name_prefix        = "oral-ray-"
  assume_role_policy = data.aws_iam_policy_document.trust.json
}

resource "aws_iam_role_policy" "store" {
  role   = aws_iam_role.store.id
  policy = data.aws_iam_policy_document.store.json
}
