variable "bucket" {
  description = "Name of the bucket to make."
  type        = string
}

variable "prefix" {
  description = "Where the store lives in it: store.uri is s3://<bucket>/<prefix>."
  type        = string
  default     = "store"

  validation {
    condition     = can(regex("^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$", var.prefix))
    error_message = "The prefix is a plain relative path such as store or teams/nlp, without slashes at its ends."
  }
}

variable "oidc_provider_arn" {
  description = "OIDC provider of the EKS cluster, for roles of service accounts."
  type        = string
}

variable "namespace" {
  description = "Kubernetes namespace of the service accounts."
  type        = string
  default     = "oral-ray"
}

variable "service_accounts" {
  description = "Accounts that may use the store."
  type        = list(string)
  default     = ["oral-ray-train", "oral-ray-serve"]
}

variable "events" {
  description = "Make a queue that is told of new objects under <prefix>/bases/."
  type        = bool
  default     = false
}
